package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// datasetVersion of npm's vega-datasets (BSD-3-Clause): a week of earthquakes as the USGS lists them, newest first, and
// 20,000 flights of early 2001 in no order.
const datasetVersion = "2.11.0"

// dataset is what was prepared.
type dataset struct {
	folder          string
	quakes, flights int
}

// record is a line of 'varve produce --format json'.
type record struct {
	Timestamp int64  `json:"timestamp"`
	Key       string `json:"key"`
	Value     string `json:"value"`
}

// prepare gets the package into the user's cache, unless it is there, and makes lines of it.
func prepare(ctx context.Context) (dataset, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return dataset{}, fmt.Errorf("finding the user's cache folder: %w", err)
	}
	d := dataset{folder: filepath.Join(cache, "varve", "vega-datasets-"+datasetVersion)}
	data := filepath.Join(d.folder, "node_modules", "vega-datasets", "data")
	if err := fetch(ctx, d.folder, data); err != nil {
		return d, err
	}
	if d.quakes, err = convert(filepath.Join(data, "earthquakes.json"), filepath.Join(d.folder, "quakes.jsonl"), quakes); err != nil {
		return d, err
	}
	d.flights, err = convert(filepath.Join(data, "flights-20k.json"), filepath.Join(d.folder, "flights.jsonl"), flights)
	return d, err
}

// fetch lets npm install the package. Both files are there or it is done again.
func fetch(ctx context.Context, folder, data string) error {
	_, err := os.Stat(filepath.Join(data, "earthquakes.json"))
	_, err2 := os.Stat(filepath.Join(data, "flights-20k.json"))
	if err := errors.Join(err, err2); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "demo: fetching vega-datasets %s, once\n", datasetVersion)
	npm := exec.CommandContext(ctx, "npm", "install", "--prefix", folder, "--no-save", "--no-audit", "--no-fund",
		"--ignore-scripts", "--loglevel=error", "vega-datasets@"+datasetVersion)
	npm.Stdout, npm.Stderr = os.Stderr, os.Stderr
	if err := npm.Run(); err != nil {
		return fmt.Errorf("npm install vega-datasets@%s: %w; Node.js with npm must be there, and npm must reach its registry", datasetVersion, err)
	}
	return nil
}

// convert writes a line a record, whole or not at all, and returns how many.
func convert(from, to string, read func([]byte) ([]record, error)) (int, error) {
	raw, err := os.ReadFile(from)
	if err != nil {
		return 0, err
	}
	records, err := read(raw)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", from, err)
	}
	f, err := os.CreateTemp(filepath.Dir(to), "convert-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name()) // Gone already when it was renamed.
	out := bufio.NewWriter(f)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for _, r := range records {
		if err := encoder.Encode(r); err != nil {
			return 0, errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(out.Flush(), f.Close()); err != nil {
		return 0, err
	}
	return len(records), os.Rename(f.Name(), to)
}

// quakes are keyed by the network that saw them, and sorted by time: the list has the newest first.
func quakes(raw []byte) ([]record, error) {
	var list struct {
		Features []struct {
			ID         string `json:"id"`
			Properties struct {
				Time  int64    `json:"time"`
				Mag   *float64 `json:"mag"`
				Place string   `json:"place"`
				Net   string   `json:"net"`
			} `json:"properties"`
		} `json:"features"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	var records []record
	for _, q := range list.Features {
		p := q.Properties
		value, err := json.Marshal(struct {
			Time  string   `json:"time"`
			ID    string   `json:"id"`
			Mag   *float64 `json:"mag"`
			Place string   `json:"place"`
		}{time.UnixMilli(p.Time).UTC().Format(time.RFC3339Nano), q.ID, p.Mag, p.Place})
		if err != nil {
			return nil, err
		}
		records = append(records, record{p.Time, p.Net, string(value)})
	}
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(a.Timestamp, b.Timestamp) })
	return records, nil
}

// flights are keyed by origin and stay in the order in which they are listed, which is none. Their departure times name
// no zone and are taken as UTC.
func flights(raw []byte) ([]record, error) {
	var list []struct {
		Date        string `json:"date"`
		Delay       int    `json:"delay"`
		Distance    int    `json:"distance"`
		Origin      string `json:"origin"`
		Destination string `json:"destination"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	var records []record
	for i, f := range list {
		when, err := time.Parse("2006/01/02 15:04", f.Date)
		if err != nil {
			return nil, fmt.Errorf("flight %d: %w", i, err)
		}
		value, err := json.Marshal(struct {
			Departure   string `json:"departure"`
			Origin      string `json:"origin"`
			Destination string `json:"destination"`
			Delay       int    `json:"delay"`
		}{when.Format(time.RFC3339), f.Origin, f.Destination, f.Delay})
		if err != nil {
			return nil, err
		}
		records = append(records, record{when.UnixMilli(), f.Origin, string(value)})
	}
	return records, nil
}
