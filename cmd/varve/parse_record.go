package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/varvelog/varve/client"
)

// recordParser makes records of lines. The record's bytes may be those of the line.
type recordParser interface {
	parse(line []byte) (client.Record, error)
}

// lineParser: a line is a value, perhaps with its key before a separator.
type lineParser struct {
	key         []byte // nil: none
	separator   []byte // nil: none
	headers     []client.Header
	timestamp   time.Time
	partition   int32
	emptyIsNull bool
}

func (p *lineParser) parse(line []byte) (client.Record, error) {
	r := client.Record{Key: p.key, Value: line, Headers: p.headers, Timestamp: p.timestamp, Partition: p.partition}
	if p.separator != nil {
		key, value, found := bytes.Cut(line, p.separator)
		if !found {
			return r, fmt.Errorf("there is no key: the separator %q is not in the line", p.separator)
		}
		r.Key, r.Value = key, value
	}
	if p.emptyIsNull {
		r.Key, r.Value = nullIfEmpty(r.Key), nullIfEmpty(r.Value)
	}
	return r, nil
}

func nullIfEmpty(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// jsonParser reads what cat -o json writes.
type jsonParser struct {
	keepPartitions bool
	partition      int32     // of all records, unless they keep theirs; -1: by key
	timestamp      time.Time // of records without one; zero: now
	emptyIsNull    bool
}

// recordJSON is a record as it is read. Pointers tell null from empty; []byte is base64.
type recordJSON struct {
	Topic       *string      `json:"topic"`
	Partition   *int32       `json:"partition"`
	Offset      *int64       `json:"offset"`
	Timestamp   *int64       `json:"timestamp"`
	Key         *string      `json:"key"`
	KeyBase64   *[]byte      `json:"key_base64"`
	Value       *string      `json:"value"`
	ValueBase64 *[]byte      `json:"value_base64"`
	Headers     []headerJSON `json:"headers"`
}

type headerJSON struct {
	Key         *string `json:"key"`
	KeyBase64   *[]byte `json:"key_base64"`
	Value       *string `json:"value"`
	ValueBase64 *[]byte `json:"value_base64"`
}

func (p *jsonParser) parse(line []byte) (client.Record, error) {
	var in recordJSON
	if err := decodeStrictly(line, &in); err != nil {
		return client.Record{}, err
	}
	r := client.Record{Partition: p.partition, Timestamp: p.timestamp}
	var err error
	if r.Key, err = eitherOf("key", in.Key, in.KeyBase64); err != nil {
		return r, err
	}
	if r.Value, err = eitherOf("value", in.Value, in.ValueBase64); err != nil {
		return r, err
	}
	if p.emptyIsNull {
		r.Key, r.Value = nullIfEmpty(r.Key), nullIfEmpty(r.Value)
	}
	for _, h := range in.Headers {
		header, err := h.header()
		if err != nil {
			return r, err
		}
		r.Headers = append(r.Headers, header)
	}
	if ms := in.Timestamp; ms != nil && *ms != -1 {
		if *ms < 0 {
			return r, fmt.Errorf(`"timestamp" is %d: want milliseconds since 1970`, *ms)
		}
		r.Timestamp = time.UnixMilli(*ms)
	}
	if p.keepPartitions {
		if in.Partition == nil || *in.Partition < 0 {
			return r, errors.New(`there is no "partition" to keep: leave out --keep-partitions to place records by key`)
		}
		r.Partition = *in.Partition
	}
	return r, nil
}

func (h *headerJSON) header() (client.Header, error) {
	key, err := eitherOf("key", h.Key, h.KeyBase64)
	if err != nil {
		return client.Header{}, fmt.Errorf("headers: %w", err)
	}
	if key == nil {
		return client.Header{}, errors.New(`headers: a header without a "key"`)
	}
	value, err := eitherOf("value", h.Value, h.ValueBase64)
	if err != nil {
		return client.Header{}, fmt.Errorf("headers: %w", err)
	}
	return client.Header{Key: string(key), Value: value}, nil
}

// eitherOf returns nil for a member that is absent or null.
func eitherOf(name string, text *string, base64 *[]byte) ([]byte, error) {
	switch {
	case text != nil && base64 != nil:
		return nil, fmt.Errorf("both %q and %q are given", name, name+"_base64")
	case base64 != nil:
		return append([]byte{}, *base64...), nil
	case text != nil:
		return []byte(*text), nil
	}
	return nil, nil
}

// decodeStrictly reads exactly one object, of UTF-8, without members that it does not know.
func decodeStrictly(line []byte, into any) error {
	if len(bytes.TrimSpace(line)) == 0 {
		return errors.New("the line is empty: want one JSON object a line")
	}
	if !utf8.Valid(line) {
		return errors.New("the line is not UTF-8: write such bytes as key_base64 or value_base64")
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return errors.New("not JSON: the line ends within the object")
		}
		text := strings.TrimPrefix(err.Error(), "json: ")
		if name, found := strings.CutPrefix(text, "unknown field "); found {
			return fmt.Errorf("unknown field %s: there are topic, partition, offset, timestamp, key, key_base64, value, value_base64, headers", name)
		}
		var mistyped *json.UnmarshalTypeError
		if errors.As(err, &mistyped) && mistyped.Field != "" {
			return fmt.Errorf("not a record in JSON: %q cannot be a %s", mistyped.Field, mistyped.Value)
		}
		var encoding base64.CorruptInputError
		if errors.As(err, &encoding) {
			return fmt.Errorf("not a record in JSON: key_base64 or value_base64 is not base64 (byte %d of it)", int64(encoding))
		}
		return fmt.Errorf("not a record in JSON: %s", text)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more on the line after the object: want one JSON object a line")
	}
	return nil
}
