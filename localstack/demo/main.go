// Command demo is the tour of the README: it fetches a public data set whose records carry their own times,
// imports it with bin/varve, and asks questions about times and offsets, each command line before its output.
//
//	npm's vega-datasets ─> <user cache>/varve/vega-datasets-<version>/{quakes,flights}.jsonl ─> varve produce ─> questions
//
// It uses the gateway at VARVE_SERVER (default http://127.0.0.1:7480). When none answers there it starts one of
// its own, in a temporary folder, and stops it at the end.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	binary, err := filepath.Abs(filepath.Join("bin", "varve"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("%w: run it by 'make demo', which builds bin/varve first", err)
	}
	files, err := prepare(ctx)
	if err != nil {
		return err
	}
	server, stopServer, err := useServer(ctx, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopServer()) }()
	t := &tour{binary: binary, server: server, folder: files.folder, out: os.Stdout}
	t.say("The data: %d earthquakes and %d flights, from npm's vega-datasets %s.", files.quakes, files.flights, datasetVersion)
	return t.run(ctx, files)
}
