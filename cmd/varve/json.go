package main

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/varvelog/varve/client"
)

// printJSON writes a value as one line.
func printJSON(w io.Writer, value any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(value)
}

// millis is a time in the API's milliseconds, -1 when there is none.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return -1
	}
	return t.UnixMilli()
}

// appendRecordJSON appends a record as one JSON object, without a newline. It is written by hand because
// cat prints millions: no reflection, and nothing allocated.
func appendRecordJSON(b []byte, r *client.Record) []byte {
	b = append(b, `{"topic":`...)
	b = appendJSONString(b, r.Topic)
	b = append(b, `,"partition":`...)
	b = strconv.AppendInt(b, int64(r.Partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, r.Offset, 10)
	b = append(b, `,"timestamp":`...)
	b = strconv.AppendInt(b, millis(r.Timestamp), 10)
	b = append(b, ',')
	b = appendJSONBytes(b, "key", r.Key)
	b = append(b, ',')
	b = appendJSONBytes(b, "value", r.Value)
	b = append(b, `,"headers":`...)
	b = appendHeadersJSON(b, r.Headers)
	return append(b, '}')
}

func appendHeadersJSON(b []byte, headers []client.Header) []byte {
	b = append(b, '[')
	for i, h := range headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		b = appendJSONBytes(b, "key", []byte(h.Key)) // Not nil, also when empty.
		b = append(b, ',')
		b = appendJSONBytes(b, "value", h.Value)
		b = append(b, '}')
	}
	return append(b, ']')
}

// appendJSONBytes appends a member: a string, null, or name_base64 for bytes that are not UTF-8.
func appendJSONBytes(b []byte, name string, value []byte) []byte {
	b = append(b, '"')
	b = append(b, name...)
	switch {
	case value == nil:
		return append(b, `":null`...)
	case utf8.Valid(value):
		b = append(b, `":`...)
		return appendJSONString(b, value)
	}
	b = append(b, `_base64":"`...)
	b = base64.StdEncoding.AppendEncode(b, value)
	return append(b, '"')
}

// appendJSONString quotes valid UTF-8.
func appendJSONString[T string | []byte](b []byte, s T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
