package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// warmRate is what a measurement writes at most, about, in bytes a second.
const warmRate = 1.5 * gib

func warmBytes(duration time.Duration) int64 { return int64(warmRate * duration.Seconds()) }

// warmCache writes so many bytes of files and removes them. What the system caches files in then is memory that was in use a moment
// ago: a virtual machine hands its free memory back to the host within seconds, and having it again costs 1.0 to 2.5
// CPU seconds a GiB here, ten times what writing a file costs else. Whoever is measured first would pay for it.
func warmCache(dir string, bytes int64) (err error) {
	own, err := os.MkdirTemp(dir, "varve-warm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(own)) }()
	piece := randomObject()
	for at := int64(0); at < bytes; at += int64(len(piece)) {
		if err := writePieces(filepath.Join(own, strconv.FormatInt(at, 10)), piece); err != nil {
			return err
		}
	}
	return nil
}

// writePieces writes a file as floor and gateway do, a MiB at a time: the system takes memory in pieces of that size.
func writePieces(path string, data []byte) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	for at := 0; at < len(data) && err == nil; at += mib {
		_, err = file.Write(data[at : at+mib])
	}
	return errors.Join(err, file.Close())
}
