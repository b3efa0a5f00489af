package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/client"
)

func genBytes() *rapid.Generator[[]byte] {
	return rapid.OneOf(
		rapid.Just([]byte(nil)),
		rapid.Just([]byte{}),
		rapid.SliceOf(rapid.Byte()),
		rapid.Map(rapid.String(), func(s string) []byte { return []byte(s) }),
	)
}

// What cat -o json writes is JSON, and produce --format json reads the same record.
func TestJSONRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := client.Record{
			Topic: rapid.StringMatching(`[a-z.]{1,10}`).Draw(t, "topic"), Partition: rapid.Int32Range(0, 9).Draw(t, "partition"),
			Offset: rapid.Int64Min(0).Draw(t, "offset"), Timestamp: time.UnixMilli(rapid.Int64Range(0, 1<<45).Draw(t, "timestamp")),
			Key: genBytes().Draw(t, "key"), Value: genBytes().Draw(t, "value"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "headers") {
			want.Headers = append(want.Headers, client.Header{Key: string(genBytes().Draw(t, "header key")), Value: genBytes().Draw(t, "header value")})
		}
		line := appendRecordJSON(nil, &want)
		if !json.Valid(line) || bytes.ContainsRune(line, '\n') {
			t.Fatalf("not a line of JSON: %s", line)
		}
		got, err := (&jsonParser{keepPartitions: true}).parse(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		want.Topic, want.Offset = "", 0
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", line, diff)
		}
	})
}

func TestRecordJSON(t *testing.T) {
	r := client.Record{Topic: "t", Partition: 1, Offset: 2, Timestamp: time.UnixMilli(3), Key: nil, Value: []byte("a\"\\\n\x01é"),
		Headers: []client.Header{{Key: "h", Value: nil}, {Key: "", Value: []byte{0xff}}}}
	want := `{"topic":"t","partition":1,"offset":2,"timestamp":3,"key":null,"value":"a\"\\\n\u0001é","headers":[{"key":"h","value":null},{"key":"","value_base64":"/w=="}]}`
	if got := string(appendRecordJSON(nil, &r)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestJSONRefused(t *testing.T) {
	for line, want := range map[string]string{
		``:                                    "the line is empty",
		`{"value":"a"`:                        "ends within the object",
		`{"value":"a"} {}`:                    "more on the line",
		`[1]`:                                 "not a record in JSON",
		`{"valeu":"a"}`:                       `unknown field "valeu"`,
		`{"value":1}`:                         `not a record in JSON: "value" cannot be a number`,
		`{"value":"a","value_base64":"YQ=="}`: `both "value" and "value_base64"`,
		`{"value_base64":"%"}`:                "not a record in JSON: key_base64 or value_base64 is not base64 (byte 0 of it)",
		`{"timestamp":-2}`:                    "want milliseconds since 1970",
		`{"timestamp":"2018"}`:                `not a record in JSON: "timestamp" cannot be a string`,
		`{"headers":[{"value":"a"}]}`:         `a header without a "key"`,
		`{"headers":{"a":"b"}}`:               "not a record in JSON",
		`{"value":"` + "\xff" + `"}`:          "not UTF-8",
	} {
		if _, err := (&jsonParser{}).parse([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something with %q", line, err, want)
		}
	}
	if _, err := (&jsonParser{keepPartitions: true}).parse([]byte(`{}`)); err == nil || !strings.Contains(err.Error(), "--keep-partitions") {
		t.Errorf("a record without a partition was taken: %v", err)
	}
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		name   string
		parser lineParser
		line   string
		want   client.Record
	}{
		{"plain", lineParser{}, "a\tb", client.Record{Value: []byte("a\tb")}},
		{"empty", lineParser{}, "", client.Record{Value: []byte{}}},
		{"empty is null", lineParser{emptyIsNull: true}, "", client.Record{}},
		{"key", lineParser{key: []byte("k")}, "v", client.Record{Key: []byte("k"), Value: []byte("v")}},
		{"separator", lineParser{separator: []byte("::")}, "k::v::w", client.Record{Key: []byte("k"), Value: []byte("v::w")}},
		{"null key", lineParser{separator: []byte(":"), emptyIsNull: true}, ":v", client.Record{Value: []byte("v")}},
		{"tombstone", lineParser{separator: []byte(":"), emptyIsNull: true}, "k:", client.Record{Key: []byte("k")}},
	} {
		got, err := c.parser.parse([]byte(c.line))
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
		}
	}
	if _, err := (&lineParser{separator: []byte(":")}).parse([]byte("v")); err == nil {
		t.Error("a line without its separator was taken")
	}
}

func TestFormat(t *testing.T) {
	r := client.Record{Topic: "t", Partition: 1, Offset: 22, Timestamp: time.UnixMilli(333), Key: []byte("key"), Value: []byte("value"),
		Headers: []client.Header{{Key: "a", Value: []byte("1")}, {Key: "b"}}}
	for format, want := range map[string]string{
		``:                  "",
		`%t %p %o %T`:       "t 1 22 333",
		`%k=%s (%K, %S)\n`:  "key=value (3, 5)\n",
		`%h`:                "a=1,b=NULL",
		`100%% \\ \t\r\x41`: "100% \\ \t\rA",
	} {
		f, err := parseFormat(format)
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if got := string(f(nil, &r)); got != want {
			t.Errorf("%s: got %q, want %q", format, got, want)
		}
	}
	null, err := parseFormat(`%k|%K|%s|%S|%T|%h`)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(null(nil, &client.Record{})); got != "|-1||-1|-1|" {
		t.Errorf("a record of nulls: %q", got)
	}
	for _, format := range []string{`%x`, `%`, `a%%%`, `\q`, `\`, `\x4`, `\xzz`} {
		if _, err := parseFormat(format); err == nil {
			t.Errorf("%q was taken", format)
		}
	}
}

// Millions of records are printed: nothing may be allocated for one.
func TestPrintingAllocatesNothing(t *testing.T) {
	r := client.Record{Topic: "t", Key: []byte("key"), Value: []byte("value"), Timestamp: time.UnixMilli(1)}
	format, err := parseFormat(`%t %p %o %T %k %s\n`)
	if err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 0, 1000)
	for name, f := range map[string]recordFormat{"value": valueLine, "json": jsonLine, "format": format} {
		if n := testing.AllocsPerRun(100, func() { line = f(line[:0], &r) }); n != 0 {
			t.Errorf("%s: %v allocations a record", name, n)
		}
	}
}
