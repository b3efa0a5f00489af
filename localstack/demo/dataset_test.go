package main

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuakesAreSortedByTime(t *testing.T) {
	got, err := quakes([]byte(`{"features":[
		{"id":"b","properties":{"time":1517966773840,"mag":2,"place":"here","net":"ci"}},
		{"id":"a","properties":{"time":1517363399650,"mag":null,"place":"there","net":"uw"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []record{
		{1517363399650, "uw", `{"time":"2018-01-31T01:49:59.65Z","id":"a","mag":null,"place":"there"}`},
		{1517966773840, "ci", `{"time":"2018-02-07T01:26:13.84Z","id":"b","mag":2,"place":"here"}`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFlightsStayInOrder(t *testing.T) {
	got, err := flights([]byte(`[
		{"date":"2001/01/31 16:40","delay":-5,"distance":1093,"origin":"FLL","destination":"ISP"},
		{"date":"2001/01/13 14:56","delay":32,"distance":418,"origin":"SAN","destination":"SJC"}]`))
	if err != nil {
		t.Fatal(err)
	}
	want := []record{
		{980959200000, "FLL", `{"departure":"2001-01-31T16:40:00Z","origin":"FLL","destination":"ISP","delay":-5}`},
		{979397760000, "SAN", `{"departure":"2001-01-13T14:56:00Z","origin":"SAN","destination":"SJC","delay":32}`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDataThatIsNotWhatItWas(t *testing.T) {
	if got, err := flights([]byte(`[{"date":"yesterday"}]`)); err == nil {
		t.Errorf("got %v", got)
	}
	if got, err := quakes([]byte(`[]`)); err == nil {
		t.Errorf("got %v", got)
	}
}

func TestShellLine(t *testing.T) {
	got := shellLine([]string{"cat", "quakes", "-f", `%p\n`, "it's", "", "@2018-02-06T15:50:00Z"})
	if want := `cat quakes -f '%p\n' 'it'\''s' '' @2018-02-06T15:50:00Z`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A command that fails ends the tour, with its name.
func TestFailedStep(t *testing.T) {
	var out bytes.Buffer
	tour := &tour{binary: "false", out: &out, folder: t.TempDir()}
	if err := tour.show(t.Context(), "cat", "x"); err == nil || err.Error() != "varve cat: exit status 1" {
		t.Errorf("%v", err)
	}
	if out.String() != "$ varve cat x\n" {
		t.Errorf("%q", &out)
	}
}
