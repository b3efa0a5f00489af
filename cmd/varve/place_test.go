package main

import (
	"testing"
	"time"

	"github.com/varvelog/varve/client"
)

func TestParseTime(t *testing.T) {
	utc := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		in   string
		want time.Time
	}{
		{"0", time.UnixMilli(0)},
		{"1406877452000", time.UnixMilli(1406877452000)},
		{"now", testNow},
		{"2018-02-07T01:26:13Z", utc("2018-02-07T01:26:13Z")},
		{"2018-02-07T01:26:13.84Z", utc("2018-02-07T01:26:13.84Z")},
		{"2018-02-07T01:26:13.840001+01:00", utc("2018-02-07T00:26:13.840001Z")},
		{"2018-02-07T01:26:13", utc("2018-02-07T01:26:13Z")},
		{"2018-02-07T01:26:13.5", utc("2018-02-07T01:26:13.5Z")},
		{"2018-02-07T01:26", utc("2018-02-07T01:26:00Z")},
		{"2018-02-07 01:26:13", utc("2018-02-07T01:26:13Z")},
		{"2018-02-07", utc("2018-02-07T00:00:00Z")},
		{"-2h", testNow.Add(-2 * time.Hour)},
		{"2h", testNow.Add(-2 * time.Hour)},
		{"90m", testNow.Add(-90 * time.Minute)},
		{"-1d", testNow.Add(-24 * time.Hour)},
		{"1d12h", testNow.Add(-36 * time.Hour)},
		{"2w1d", testNow.Add(-15 * 24 * time.Hour)},
		{"1h30m0.5s", testNow.Add(-90*time.Minute - 500*time.Millisecond)},
	} {
		got, err := parseTime(c.in, testNow)
		if err != nil || !got.Equal(c.want) {
			t.Errorf("parseTime(%q) = %v, %v, want %v", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"", "-", "x", "-1", "h", "--2h", "+2h", "1x", "d", "w", "1d-2h", "1d1d", "1969-12-31", "-100000w", "99999999999999999999", "12:30", "2018-13-01",
	} {
		if got, err := parseTime(in, testNow); err == nil {
			t.Errorf("parseTime(%q) = %v, want an error", in, got)
		}
	}
}

func TestParsePlace(t *testing.T) {
	for _, c := range []struct {
		in     string
		want   client.Place
		offset int64
	}{
		{"earliest", client.Earliest(), -1},
		{"latest", client.Latest(), -1},
		{"0", client.At(0), 0},
		{"34305339", client.At(34305339), 34305339},
		{"-5", client.BeforeEnd(5), -1},
		{"-0", client.BeforeEnd(0), -1},
		{"@1406877452000", client.AtTime(time.UnixMilli(1406877452000)), -1},
		{"@2018-02-07T01:26:13Z", client.AtTime(time.Date(2018, 2, 7, 1, 26, 13, 0, time.UTC)), -1},
		{"@-2h", client.AtTime(testNow.Add(-2 * time.Hour)), -1},
	} {
		got, offset, err := parsePlace(c.in, testNow)
		if err != nil || got != c.want || offset != c.offset {
			t.Errorf("parsePlace(%q) = %v, %d, %v, want %v, %d", c.in, got, offset, err, c.want, c.offset)
		}
	}
	for in, want := range map[string]string{
		"":                     `place "": want earliest, latest, an offset, -N or @TIME`,
		"newest":               `place "newest": want earliest, latest, an offset, -N or @TIME`,
		"-2h":                  `place "-2h": want earliest, latest, an offset, -N or @TIME; for a time, write @-2h`,
		"9999999999999999999":  `place "9999999999999999999": too large for an offset`,
		"-9999999999999999999": `place "-9999999999999999999": too large a number of records`,
		"@":                    `time "": ` + wantTime,
		"@yesterday":           `time "yesterday": ` + wantTime,
	} {
		if _, _, err := parsePlace(in, testNow); err == nil || err.Error() != want {
			t.Errorf("parsePlace(%q): %v, want %s", in, err, want)
		}
	}
}

func TestParseRange(t *testing.T) {
	got, err := parseRange("1000, 2000", testNow)
	if err != nil || got.Start != time.UnixMilli(1000) || got.End != time.UnixMilli(2000) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, in := range []string{"", "1000", "2000,1000", "a,1", "1,b", "1,2,3"} {
		if got, err := parseRange(in, testNow); err == nil {
			t.Errorf("parseRange(%q) = %v, want an error", in, got)
		}
	}
}

func FuzzPlace(f *testing.F) {
	for _, s := range []string{"earliest", "-5", "12", "@-1d2h", "@2018-02-07T01:26:13.84Z", "@1406877452000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, offset, err := parsePlace(s, testNow)
		if err != nil {
			return
		}
		// A place is printed as it is read.
		again, offset2, err := parsePlace(p.String(), testNow)
		if err != nil || again != p || offset2 != offset {
			t.Errorf("%q is read as %v, and that as %v, %v", s, p, again, err)
		}
	})
}
