package segments_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

func openBuffer(t testing.TB, sys segments.FS, dir string, config segments.BufferConfig) *segments.BufferDir {
	t.Helper()
	d, err := segments.OpenBufferDir(sys, dir, config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestBufferOnDisk goes once around on the real file system.
func TestBufferOnDisk(t *testing.T) {
	root := filepath.Join(t.TempDir(), "data", "buffer")
	dir := openBuffer(t, segments.OS(), root, segments.BufferConfig{})
	file, err := dir.Create(sampleGateway, 7)
	if err != nil {
		t.Fatal(err)
	}
	end := int64(0)
	for _, batch := range sampleBatches() {
		if end, err = file.Append(batch.Span, batch.Info, batch.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(file.Sync(context.Background(), end), file.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		"": 0o700 | fs.ModeDir, "LOCK": 0o600, "gw-1": 0o700 | fs.ModeDir, "gw-1/00000000000000000007.buf": 0o600,
	} {
		info, err := os.Stat(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%q has mode %v, want %v", path, info.Mode(), want)
		}
	}

	dir = openBuffer(t, segments.OS(), root, segments.BufferConfig{})
	defer dir.Close()
	files, err := dir.Scan()
	if err != nil || len(files) != 1 {
		t.Fatalf("found %v, %v", files, err)
	}
	var batches []segments.RecoveredBatch
	for batch, err := range files[0].All() {
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, batch)
	}
	if diff := cmp.Diff(sampleBatches(), batches); diff != "" {
		t.Error(diff)
	}
	if err := dir.RemoveGateway(sampleGateway); err == nil {
		t.Error("removed a gateway that has a file")
	}
	if err := errors.Join(files[0].Remove(), dir.RemoveGateway(sampleGateway), dir.RemoveGateway(sampleGateway)); err != nil {
		t.Error(err)
	}
	if ids, err := dir.Gateways(); len(ids) != 0 || err != nil {
		t.Errorf("gateways left: %v, %v", ids, err)
	}
}

func TestBufferLock(t *testing.T) {
	for name, sys := range map[string]segments.FS{"os": segments.OS(), "faultfs": faultfs.New()} {
		t.Run(name, func(t *testing.T) {
			root := "/buffer"
			if name == "os" {
				root = t.TempDir()
			}
			dir := openBuffer(t, sys, root, segments.BufferConfig{})
			_, err := segments.OpenBufferDir(sys, root, segments.BufferConfig{})
			if !errors.Is(err, segments.ErrLocked) || !strings.Contains(err.Error(), root) {
				t.Errorf("opened twice: %v", err)
			}
			if err := dir.Close(); err != nil {
				t.Fatal(err)
			}
			if err := openBuffer(t, sys, root, segments.BufferConfig{}).Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	sys := faultfs.New()
	dir := openBuffer(t, sys, "/buffer", segments.BufferConfig{})
	if _, err := dir.Create("../x", 1); err == nil {
		t.Error("made a file outside its folder")
	}
	if _, err := dir.Create("a", 0); err == nil {
		t.Error("made number 0")
	}
	if _, err := dir.Create("a", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Create("a", 1); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made a file twice: %v", err)
	}
	sys.SetRoom(10)
	if _, err := dir.Create("a", 2); !errors.Is(err, segments.ErrDiskFull) {
		t.Errorf("made a file on a full disk: %v", err)
	}
	if _, err := sys.Content("/buffer/a/00000000000000000002.buf"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
}

func TestAppendRefuses(t *testing.T) {
	_, file := openFile(t)
	before := file.Bytes()
	batch := sampleBatches()[0]
	if _, err := file.Append(segments.SpanID{Partition: -1}, batch.Info, batch.Data); err == nil {
		t.Error("appended to a negative partition")
	}
	if _, err := file.Append(batch.Span, batch.Info, nil); err == nil {
		t.Error("appended nothing")
	}
	if _, err := file.Append(batch.Span, batch.Info, make([]byte, segments.MaxBufferedBatch+1)); err == nil {
		t.Error("appended what no scan would read")
	}
	if file.Bytes() != before {
		t.Errorf("the file grew by %d bytes", file.Bytes()-before)
	}
}

// TestDiskFull goes on after there is room again, as if nothing had been.
func TestDiskFull(t *testing.T) {
	sys, file := openFile(t)
	appendSample(t, file)
	whole, err := sys.Content(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	batch := sampleBatches()[1]
	for room := range int64(104 + len(batch.Data)) {
		sys.SetRoom(room)
		if _, err := file.Append(batch.Span, batch.Info, batch.Data); !errors.Is(err, segments.ErrDiskFull) {
			t.Fatalf("append with room for %d bytes: %v", room, err)
		}
		if now, err := sys.Content(samplePath); err != nil || !bytes.Equal(now, whole) {
			t.Fatalf("a torn frame is left: %d bytes, %v", len(now), err)
		}
	}
	sys.SetRoom(faultfs.Unlimited)
	if err := file.Sync(context.Background(), appendSample(t, file)); err != nil {
		t.Error(err)
	}
}

func TestRoom(t *testing.T) {
	sys := faultfs.New()
	dir := openBuffer(t, sys, "/buffer", segments.BufferConfig{Reserve: 1000})
	sys.SetRoom(400)
	if free, err := dir.Free(); free != 400 || err != nil {
		t.Errorf("free: %d, %v", free, err)
	}
	if room, err := dir.Room(); room != -600 || err != nil {
		t.Errorf("room: %d, %v", room, err)
	}
	for _, reserve := range []int64{-1, math.MaxInt64} {
		if _, err := segments.OpenBufferDir(sys, "/other", segments.BufferConfig{Reserve: reserve}); err == nil {
			t.Errorf("reserve %d is accepted", reserve)
		}
	}
}

// TestRemovedFiles come back after a crash, until their gateway is removed.
func TestRemovedFiles(t *testing.T) {
	sys, file := openFile(t)
	if err := errors.Join(file.Sync(context.Background(), appendSample(t, file)), file.Remove()); err != nil {
		t.Fatal(err)
	}
	sys.Crash(nil)
	dir := openBuffer(t, sys, "/buffer", segments.BufferConfig{})
	files, err := dir.Scan()
	if err != nil || len(files) != 1 || files[0].Batches != 1 {
		t.Fatalf("after a removal that was not synced: %v, %v", files, err)
	}
	if err := errors.Join(files[0].Remove(), dir.RemoveGateway(sampleGateway)); err != nil {
		t.Fatal(err)
	}
	sys.Crash(nil)
	dir = openBuffer(t, sys, "/buffer", segments.BufferConfig{})
	if ids, err := dir.Gateways(); len(ids) != 0 || err != nil {
		t.Errorf("a removed gateway is back: %v, %v", ids, err)
	}
}

func TestSetAside(t *testing.T) {
	sys := faultfs.New()
	dir := openBuffer(t, sys, "/buffer", segments.BufferConfig{})
	for number := range uint64(2) {
		file, err := dir.Create(sampleGateway, number+7)
		if err != nil {
			t.Fatal(err)
		}
		appendSample(t, file)
		if err := errors.Join(file.Sync(context.Background(), appendSample(t, file)), file.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := sys.Flip(samplePath, 8*150); err != nil {
		t.Fatal(err)
	}
	files, err := dir.Scan()
	if err != nil || len(files) != 2 {
		t.Fatalf("found %v, %v", files, err)
	}
	bad := files[0]
	if len(bad.Damage) != 1 || !errors.Is(bad.Damage[0], segments.ErrCorrupt) || !strings.Contains(bad.Damage[0].Error(), samplePath) {
		t.Fatalf("damage: %v", bad.Damage)
	}
	if err := bad.Remove(); err == nil {
		t.Error("removed a damaged file")
	}
	if err := errors.Join(bad.SetAside(), files[1].Remove(), dir.RemoveGateway(sampleGateway)); err != nil {
		t.Fatal(err)
	}
	sys.Crash(nil)
	if _, err := sys.Content(samplePath + ".damaged"); err != nil {
		t.Errorf("what was set aside: %v", err)
	}
	dir = openBuffer(t, sys, "/buffer", segments.BufferConfig{})
	if files, err := dir.Scan(); len(files) != 0 || err != nil {
		t.Errorf("found again: %v, %v", files, err)
	}
}

func TestSetAsideKeepsAnEarlierOne(t *testing.T) {
	sys := faultfs.New()
	dir := openBuffer(t, sys, "/buffer", segments.BufferConfig{})
	if err := sys.Mkdir("/buffer/gw-1"); err != nil {
		t.Fatal(err)
	}
	if err := sys.Put(samplePath, zero(96, 110)(bufferSample(2))); err != nil {
		t.Fatal(err)
	}
	if err := sys.Put(samplePath+".damaged", []byte("earlier")); err != nil {
		t.Fatal(err)
	}
	files, err := dir.Scan()
	if err != nil {
		t.Fatal(err)
	}
	if err := files[0].SetAside(); err == nil {
		t.Error("replaced a file that was set aside")
	}
	if kept, err := sys.Content(samplePath + ".damaged"); string(kept) != "earlier" {
		t.Errorf("the earlier one is %q, %v", kept, err)
	}
}

// TestScanTellsReadErrors shows that a file which cannot be read is not skipped.
func TestScanTellsReadErrors(t *testing.T) {
	for _, kind := range []faultfs.Kind{faultfs.ReadDir, faultfs.Open, faultfs.Read} {
		sys := faultfs.New()
		dir := openBuffer(t, sys, "/buffer", segments.BufferConfig{})
		if err := sys.Mkdir("/buffer/gw-1"); err != nil {
			t.Fatal(err)
		}
		if err := sys.Put(samplePath, bufferSample(2)); err != nil {
			t.Fatal(err)
		}
		sys.Intercept(func(op faultfs.Op) *faultfs.Fault {
			if op.Kind == kind {
				return &faultfs.Fault{Err: syscall.EIO}
			}
			return nil
		})
		if files, err := dir.Scan(); !errors.Is(err, syscall.EIO) || files != nil {
			t.Errorf("%s fails: %v, %v", kind, files, err)
		}
	}
}

// BenchmarkLoneBufferedAppend is one producer that waits for each ack: with a file of
// its own each time, as on a quiet gateway, and in one file.
func BenchmarkLoneBufferedAppend(b *testing.B) {
	batch := sampleBatches()[0]
	batch.Data = make([]byte, 1<<10)
	dir := openBuffer(b, segments.OS(), b.TempDir(), segments.BufferConfig{})
	number := uint64(0)
	create := func(b *testing.B) *segments.BufferFile {
		number++
		file, err := dir.Create(sampleGateway, number)
		if err != nil {
			b.Fatal(err)
		}
		return file
	}
	write := func(b *testing.B, file *segments.BufferFile) {
		end, err := file.Append(batch.Span, batch.Info, batch.Data)
		if err == nil {
			err = file.Sync(context.Background(), end)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("one file", func(b *testing.B) {
		file := create(b)
		percentiles(b, func() { write(b, file) })
	})
	b.Run("a file each", func(b *testing.B) {
		percentiles(b, func() {
			file := create(b)
			write(b, file)
			if err := file.Remove(); err != nil {
				b.Fatal(err)
			}
		})
	})
}

// percentiles runs the benchmark and reports the median and the 99th percentile.
func percentiles(b *testing.B, work func()) {
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		work()
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// TestSettleGateway: what tells the next start whose id it was stays until the id is closed.
func TestSettleGateway(t *testing.T) {
	dir, err := segments.OpenBufferDir(faultfs.New(), "/buffer", segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := dir.Create(sampleGateway, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.SettleGateway(sampleGateway); err == nil {
		t.Error("a folder with a buffer file was settled")
	}
	if err := errors.Join(file.Remove(), dir.SettleGateway(sampleGateway)); err != nil {
		t.Fatal(err)
	}
	if ids, err := dir.Gateways(); err != nil || len(ids) != 1 {
		t.Errorf("after settling: %v, %v; want the id", ids, err)
	}
	if err := errors.Join(dir.RemoveGateway(sampleGateway), dir.SettleGateway(sampleGateway)); err != nil {
		t.Fatal(err)
	}
	if ids, err := dir.Gateways(); err != nil || len(ids) != 0 {
		t.Errorf("after removing: %v, %v; want nothing", ids, err)
	}
}
