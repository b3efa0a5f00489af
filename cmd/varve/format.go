package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/varvelog/varve/client"
)

// recordFormat appends a record to a buffer, as it is to be printed.
type recordFormat func(b []byte, r *client.Record) []byte

// valueLine is the value and a newline.
func valueLine(b []byte, r *client.Record) []byte {
	return append(append(b, r.Value...), '\n')
}

func jsonLine(b []byte, r *client.Record) []byte {
	return append(appendRecordJSON(b, r), '\n')
}

// fields are kcat's letters. Sizes of null are -1; the key and value of null are empty.
var fields = map[byte]recordFormat{
	't': func(b []byte, r *client.Record) []byte { return append(b, r.Topic...) },
	'p': func(b []byte, r *client.Record) []byte { return strconv.AppendInt(b, int64(r.Partition), 10) },
	'o': func(b []byte, r *client.Record) []byte { return strconv.AppendInt(b, r.Offset, 10) },
	'k': func(b []byte, r *client.Record) []byte { return append(b, r.Key...) },
	's': func(b []byte, r *client.Record) []byte { return append(b, r.Value...) },
	'K': func(b []byte, r *client.Record) []byte { return appendSize(b, r.Key) },
	'S': func(b []byte, r *client.Record) []byte { return appendSize(b, r.Value) },
	'T': func(b []byte, r *client.Record) []byte { return strconv.AppendInt(b, millis(r.Timestamp), 10) },
	'h': appendHeaders,
	'%': func(b []byte, _ *client.Record) []byte { return append(b, '%') },
}

const formatLetters = "%t topic, %p partition, %o offset, %T timestamp in ms, %k key, %s value, %K and %S their sizes, %h headers, %% a percent sign"

func appendSize(b, value []byte) []byte {
	if value == nil {
		return append(b, "-1"...)
	}
	return strconv.AppendInt(b, int64(len(value)), 10)
}

// appendHeaders writes a=1,b=2, and NULL for a null as kcat does.
func appendHeaders(b []byte, r *client.Record) []byte {
	for i, h := range r.Headers {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, h.Key...), '=')
		if h.Value == nil {
			b = append(b, "NULL"...)
		}
		b = append(b, h.Value...)
	}
	return b
}

// parseFormat reads kcat's format: letters after %, and the escapes \n \r \t \\ \xHH.
func parseFormat(format string) (recordFormat, error) {
	var parts []recordFormat
	literal := func(text string) {
		if text != "" {
			parts = append(parts, func(b []byte, _ *client.Record) []byte { return append(b, text...) })
		}
	}
	for format != "" {
		text, rest, found := strings.Cut(format, "%")
		text, err := unescape(text)
		if err != nil {
			return nil, err
		}
		literal(text)
		if !found {
			break
		}
		if rest == "" {
			return nil, fmt.Errorf("ends in a single %%: it has %s", formatLetters)
		}
		field, ok := fields[rest[0]]
		if !ok {
			return nil, fmt.Errorf("unknown letter %%%c: there are %s", rest[0], formatLetters)
		}
		parts = append(parts, field)
		format = rest[1:]
	}
	return func(b []byte, r *client.Record) []byte {
		for _, part := range parts {
			b = part(b, r)
		}
		return b
	}, nil
}

// unescape replaces \n, \r, \t, \\ and \xHH.
func unescape(s string) (string, error) {
	var out strings.Builder
	for {
		text, rest, found := strings.Cut(s, `\`)
		out.WriteString(text)
		if !found {
			return out.String(), nil
		}
		if rest == "" {
			return "", fmt.Errorf(`ends in a single \: a backslash is \\`)
		}
		letter := rest[0]
		s = rest[1:]
		switch letter {
		case 'n':
			out.WriteByte('\n')
		case 'r':
			out.WriteByte('\r')
		case 't':
			out.WriteByte('\t')
		case '\\':
			out.WriteByte('\\')
		case 'x':
			n, err := strconv.ParseUint(s[:min(2, len(s))], 16, 8)
			if err != nil || len(s) < 2 {
				return "", fmt.Errorf(`\x wants two hex digits`)
			}
			out.WriteByte(byte(n))
			s = s[2:]
		default:
			return "", fmt.Errorf(`unknown escape \%c: there are \n, \r, \t, \\ and \xHH`, letter)
		}
	}
}

// formatFlags decides how records are printed.
func (a *app) recordFormat(format string, given bool) (recordFormat, error) {
	switch {
	case given && a.json():
		return nil, usagef("--format and --output json exclude each other")
	case a.json():
		return jsonLine, nil
	case !given:
		return valueLine, nil
	}
	f, err := parseFormat(format)
	if err != nil {
		return nil, usagef("--format %q: %v", format, err)
	}
	return f, nil
}
