package segments_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// TestBufferSurvivesCrashes appends, syncs, fails, loses power and starts again in
// random order, and compares what a scan finds with what was promised.
func TestBufferSurvivesCrashes(t *testing.T) {
	var crashes, promised, syncFaults, full int
	rapid.Check(t, func(t *rapid.T) {
		w := &bufferWorld{fs: faultfs.New(), files: make(map[bufferKey]*bufferModel)}
		w.start(t, false)
		t.Repeat(map[string]func(*rapid.T){
			"create":         w.create,
			"append":         w.append,
			"append more":    func(t *rapid.T) { w.append(t); w.append(t) },
			"append, sync":   func(t *rapid.T) { w.append(t); w.sync(t) },
			"append on full": w.appendOnFull,
			"sync":           w.sync,
			"sync fails":     w.syncFails,
			"remove":         w.remove,
			"remove gateway": w.removeGateway,
			"kill": func(t *rapid.T) {
				w.fs.Kill()
				w.start(t, true)
			},
			"crash": func(t *rapid.T) {
				w.fs.Crash(func(n int) int { return rapid.IntRange(0, n).Draw(t, "kept") })
				w.start(t, false)
			},
		})
		crashes, promised, syncFaults, full = crashes+w.crashes, promised+w.promised, syncFaults+w.syncFaults, full+w.full
	})
	t.Logf("%d starts, %d batches promised, %d failed syncs, %d full disks", crashes, promised, syncFaults, full)
	if crashes == 0 || promised == 0 || syncFaults == 0 || full == 0 {
		t.Error("the run did not try what it is for")
	}
}

type bufferKey struct {
	gateway segments.GatewayID
	number  uint64
}

// bufferModel is what a file must give back.
type bufferModel struct {
	file     *segments.BufferFile // nil in later lives
	appended []segments.RecoveredBatch
	ends     []int64
	promised int // so many of them must survive
	failed   bool
	removed  bool // may come back
	gone     bool // must not
}

type bufferWorld struct {
	fs    *faultfs.FS
	dir   *segments.BufferDir
	id    segments.GatewayID
	lives int
	files map[bufferKey]*bufferModel

	crashes, promised, syncFaults, full int
}

// start opens the folder under a new id, as a gateway does, and checks what is there.
func (w *bufferWorld) start(t *rapid.T, all bool) {
	dir, err := segments.OpenBufferDir(w.fs, "/data/buffer", segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	w.dir, w.id = dir, segments.GatewayID(fmt.Sprintf("gateway-%03d", w.lives))
	w.lives++
	w.crashes++
	found, err := dir.Scan()
	if err != nil {
		t.Fatal(err)
	}
	var last bufferKey
	seen := make(map[bufferKey]bool)
	for _, file := range found {
		key := bufferKey{file.Gateway, file.Number}
		if key.gateway < last.gateway || key.gateway == last.gateway && key.number <= last.number {
			t.Fatalf("%v comes after %v", key, last)
		}
		last, seen[key] = key, true
		w.compare(t, file, w.files[key], all)
	}
	for key, model := range w.files {
		model.file = nil
		if seen[key] || model.removed {
			continue
		}
		if model.promised > 0 || all {
			t.Fatalf("%v is gone, %d batches were promised", key, model.promised)
		}
		delete(w.files, key) // and must not come back
	}
}

func (w *bufferWorld) compare(t *rapid.T, file segments.RecoveredFile, model *bufferModel, all bool) {
	if model == nil || model.gone {
		t.Fatalf("%s was never made, or its removal was durable", file.Path())
	}
	if len(file.Damage) > 0 {
		t.Fatalf("a crash is no damage: %v", file.Damage)
	}
	var batches []segments.RecoveredBatch
	for batch, err := range file.All() {
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, batch)
	}
	if len(batches) != file.Batches || len(batches) > len(model.appended) || len(batches) < model.promised {
		t.Fatalf("%s has %d batches, the scan counted %d; %d were appended, %d promised",
			file.Path(), len(batches), file.Batches, len(model.appended), model.promised)
	}
	if all && len(batches) != len(model.appended) {
		t.Fatalf("%s has %d of %d batches, and the power was on", file.Path(), len(batches), len(model.appended))
	}
	if diff := cmp.Diff(model.appended[:len(batches)], batches, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s: %s", file.Path(), diff)
	}
	model.appended = batches // what the crash took does not come back
}

func (w *bufferWorld) create(t *rapid.T) {
	number := rapid.Uint64Range(1, 9).Draw(t, "number")
	key := bufferKey{w.id, number}
	model := w.files[key]
	if model != nil && model.removed {
		t.Skip("a gateway does not use a number twice")
	}
	file, err := w.dir.Create(w.id, number)
	switch {
	case model != nil && errors.Is(err, fs.ErrExist):
	case model != nil:
		t.Fatalf("created %v twice: %v", key, err)
	case err != nil:
		t.Fatal(err)
	default:
		w.files[key] = &bufferModel{file: file}
	}
}

// open draws one of the files that are in use, and makes one if there is none.
func (w *bufferWorld) open(t *rapid.T) *bufferModel {
	var keys []bufferKey
	for key, model := range w.files {
		if model.file != nil && !model.removed {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		w.create(t)
		return w.open(t)
	}
	slices.SortFunc(keys, func(a, b bufferKey) int { return int(a.number) - int(b.number) })
	return w.files[rapid.SampledFrom(keys).Draw(t, "file")]
}

func (w *bufferWorld) append(t *rapid.T) {
	model := w.open(t)
	batch := drawBatch(t)
	end, err := model.file.Append(batch.Span, batch.Info, batch.Data)
	if model.failed {
		if !errors.Is(err, segments.ErrBufferFailed) {
			t.Fatalf("append to a failed file: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	model.appended, model.ends = append(model.appended, batch), append(model.ends, end)
}

func (w *bufferWorld) appendOnFull(t *rapid.T) {
	model := w.open(t)
	if model.failed {
		t.Skip("nothing is appended to a failed file")
	}
	batch := drawBatch(t)
	w.fs.SetRoom(rapid.Int64Range(0, 104).Draw(t, "room"))
	defer w.fs.SetRoom(faultfs.Unlimited)
	cut := rapid.Bool().Draw(t, "cutting works")
	if !cut {
		w.fail(faultfs.Truncate)
		defer w.fs.Intercept(nil)
	}
	_, err := model.file.Append(batch.Span, batch.Info, batch.Data)
	if !errors.Is(err, segments.ErrDiskFull) || errors.Is(err, segments.ErrBufferFailed) == cut {
		t.Fatalf("append to a full disk: %v", err)
	}
	model.failed = !cut
	w.full++
}

// fail makes the next operation of a kind fail, and none after it.
func (w *bufferWorld) fail(kind faultfs.Kind) {
	var once sync.Once
	w.fs.Intercept(func(op faultfs.Op) (fault *faultfs.Fault) {
		if op.Kind == kind {
			once.Do(func() { fault = &faultfs.Fault{Err: syscall.EIO} })
		}
		return fault
	})
}

func (w *bufferWorld) sync(t *rapid.T) {
	model := w.open(t)
	if len(model.ends) == 0 {
		t.Skip("nothing to sync")
	}
	i := rapid.IntRange(0, len(model.ends)-1).Draw(t, "batch")
	err := model.file.Sync(context.Background(), model.ends[i])
	if err == nil {
		w.promised += max(0, i+1-model.promised)
		model.promised = max(model.promised, i+1)
	} else if !model.failed || !errors.Is(err, segments.ErrBufferFailed) {
		t.Fatal(err)
	}
}

// syncFails is told "done" only of what was durable before.
func (w *bufferWorld) syncFails(t *rapid.T) {
	kind := rapid.SampledFrom([]faultfs.Kind{faultfs.Sync, faultfs.SyncDir}).Draw(t, "kind")
	model := w.open(t)
	if len(model.ends) == 0 {
		t.Skip("nothing to sync")
	}
	w.fail(kind)
	defer w.fs.Intercept(nil)
	i := rapid.IntRange(0, len(model.ends)-1).Draw(t, "batch")
	err := model.file.Sync(context.Background(), model.ends[i])
	switch {
	case err == nil:
		model.promised = max(model.promised, i+1)
	case errors.Is(err, segments.ErrBufferFailed):
		model.failed = true
		w.syncFaults++
	default:
		t.Fatal(err)
	}
}

func (w *bufferWorld) remove(t *rapid.T) {
	model := w.open(t)
	if err := model.file.Remove(); err != nil {
		t.Fatal(err)
	}
	model.removed = true
}

func (w *bufferWorld) removeGateway(t *rapid.T) {
	var files []*bufferModel
	left := false
	for key, model := range w.files {
		if key.gateway == w.id {
			files = append(files, model)
			left = left || !model.removed
		}
	}
	if err := w.dir.RemoveGateway(w.id); (err != nil) != left {
		t.Fatalf("removing a gateway, files left %v: %v", left, err)
	}
	if left {
		return
	}
	for _, model := range files {
		model.gone = true
	}
}

// drawBatch returns a batch as a scan must return it. Its data may be a whole buffer
// file: what a producer sends must never pass for a frame.
func drawBatch(t *rapid.T) segments.RecoveredBatch {
	data := rapid.SliceOfN(rapid.Byte(), 1, 60).Draw(t, "data")
	if rapid.IntRange(0, 9).Draw(t, "hostile") == 0 {
		data = bufferSample(1)
	}
	info := segments.BatchInfo{
		Size:           int32(len(data)),
		Offsets:        rapid.Int32Range(1, 1<<30).Draw(t, "offsets"),
		Records:        rapid.Int32Range(0, 1<<30).Draw(t, "records"),
		MinTimestamp:   rapid.Int64().Draw(t, "min timestamp"),
		MaxTimestamp:   rapid.Int64().Draw(t, "max timestamp"),
		LastTimestamp:  rapid.Int64().Draw(t, "last timestamp"),
		CRC:            rapid.Uint32().Draw(t, "crc"),
		ProducerID:     rapid.Int64().Draw(t, "producer id"),
		ProducerEpoch:  rapid.Int16().Draw(t, "epoch"),
		BaseSequence:   rapid.Int32().Draw(t, "sequence"),
		Ack:            segments.AckBuffered,
		ExpectedOffset: rapid.Int64Min(-1).Draw(t, "expected offset"),
	}
	if rapid.Bool().Draw(t, "has token") {
		info.HasFencingToken = true
		info.FencingToken = rapid.StringN(0, 20, 80).Draw(t, "token")
	}
	span := segments.SpanID{Partition: rapid.Int32Min(0).Draw(t, "partition")}
	copy(span.Topic[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "topic"))
	return segments.RecoveredBatch{Span: span, Info: info, Data: data}
}
