package segments_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// scanContent scans a folder that holds one file.
func scanContent(t testing.TB, content []byte) (segments.RecoveredFile, []segments.RecoveredBatch, error) {
	t.Helper()
	sys := faultfs.New()
	dir, err := segments.OpenBufferDir(sys, "/buffer", segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sys.Mkdir("/buffer/gw-1"); err != nil {
		t.Fatal(err)
	}
	if err := sys.Put(samplePath, content); err != nil {
		t.Fatal(err)
	}
	files, err := dir.Scan()
	if err != nil {
		return segments.RecoveredFile{}, nil, err
	}
	if len(files) != 1 {
		t.Fatalf("%d files found", len(files))
	}
	var batches []segments.RecoveredBatch
	for batch, err := range files[0].All() {
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, batch)
	}
	return files[0], batches, nil
}

// frameCRC makes a changed header or frame consistent again.
func frameCRC(in []byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.BigEndian.PutUint32(in[12:], crc32.Update(crc32.Checksum(in[:12], table), table, in[16:]))
}

func TestScanOfDamage(t *testing.T) {
	content, ends := sampleFile(3)
	size := ends[2]
	type want struct {
		batches []int // of the sample
		torn    int64
		damage  string // "position+length", or none
		newer   bool
	}
	all := []int{0, 1, 2}
	for name, test := range map[string]struct {
		change func(b []byte) []byte
		want   want
	}{
		"whole":                      {func(b []byte) []byte { return b }, want{batches: all}},
		"empty":                      {func(b []byte) []byte { return nil }, want{}},
		"half a header":              {func(b []byte) []byte { return b[:50] }, want{torn: 50}},
		"header only":                {func(b []byte) []byte { return b[:96] }, want{}},
		"header of zeros":            {func(b []byte) []byte { return make([]byte, 500) }, want{torn: 500}},
		"torn in the first head":     {func(b []byte) []byte { return b[:100] }, want{torn: 4}},
		"torn in the last data":      {func(b []byte) []byte { return b[:size-1] }, want{batches: []int{0, 1}, torn: size - 1 - ends[1]}},
		"zeros at the end":           {func(b []byte) []byte { return append(b, make([]byte, 5000)...) }, want{batches: all, torn: 5000}},
		"last frame is zeros":        {zero(ends[1], size), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"flip in the last frame":     {flip(size - 1), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"first frame is zeros":       {zero(96, ends[0]), want{batches: []int{1, 2}, damage: fmt.Sprintf("96+%d", ends[0]-96)}},
		"flip in the middle":         {flip(ends[1] - 1), want{batches: []int{0, 2}, damage: fmt.Sprintf("%d+%d", ends[0], ends[1]-ends[0])}},
		"flip in a length":           {flip(ends[0] + 8), want{batches: []int{0, 2}, damage: fmt.Sprintf("%d+%d", ends[0], ends[1]-ends[0])}},
		"two of three bad":           {zero(96, ends[1]), want{batches: []int{2}, damage: fmt.Sprintf("96+%d", ends[1]-96)}},
		"a frame is cut out":         {func(b []byte) []byte { return append(b[:ends[0]], b[ends[1]:]...) }, want{batches: []int{0, 2}, damage: fmt.Sprintf("%d+0", ends[0])}},
		"a frame comes twice":        {func(b []byte) []byte { return append(b, b[ends[1]:]...) }, want{batches: all, torn: size - ends[1]}},
		"another file's frame":       {otherMarker(ends[1]), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"flip in the magic":          {flip(0), want{batches: all, damage: "0+96"}},
		"flip in the version":        {flip(11), want{batches: all, damage: "0+96"}},
		"flip in the marker":         {flip(16), want{batches: all, damage: "0+96"}},
		"flip in the gateway":        {flip(33), want{batches: all, damage: "0+96"}},
		"header and first frame bad": {zero(0, ends[0]), want{damage: fmt.Sprintf("0+%d", size)}},
		"another number":             {header(func(h []byte) { h[31]++ }), want{damage: fmt.Sprintf("0+%d", size)}},
		"another gateway":            {header(func(h []byte) { h[32]++ }), want{damage: fmt.Sprintf("0+%d", size)}},
		"version 0":                  {header(func(h []byte) { h[11] = 0 }), want{batches: all, damage: "0+96"}},
		"newer version":              {header(func(h []byte) { h[11] = 2 }), want{newer: true}},
		"a reserved flag":            {lastFrame(ends[1], func(f []byte) { f[99] |= 2 }), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"a reserved field":           {lastFrame(ends[1], func(f []byte) { f[103] = 1 }), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"no data":                    {lastFrame(ends[1], func(f []byte) { f[101] = 40 }), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"negative partition":         {lastFrame(ends[1], func(f []byte) { f[36] = 0x80 }), want{batches: []int{0, 1}, torn: size - ends[1]}},
		"an absurd length":           {lastFrame(ends[1], func(f []byte) { f[8] = 0xFF }), want{batches: []int{0, 1}, torn: size - ends[1]}},
	} {
		t.Run(name, func(t *testing.T) {
			file, batches, err := scanContent(t, test.change(bytes.Clone(content)))
			if errors.Is(err, segments.ErrVersion) != test.want.newer || err != nil && !test.want.newer {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pick(test.want.batches), batches); diff != "" {
				t.Error(diff)
			}
			if file.TornBytes != test.want.torn {
				t.Errorf("%d torn bytes, want %d", file.TornBytes, test.want.torn)
			}
			if got := places(file.Damage); got != test.want.damage {
				t.Errorf("damage at %q, want %q", got, test.want.damage)
			}
		})
	}
}

func pick(indexes []int) []segments.RecoveredBatch {
	var batches []segments.RecoveredBatch
	for _, i := range indexes {
		batches = append(batches, sampleBatches()[i])
	}
	return batches
}

func places(damage []segments.Damage) string {
	var places []string
	for _, d := range damage {
		places = append(places, fmt.Sprintf("%d+%d", d.Position, d.Length))
	}
	return strings.Join(places, " ")
}

func zero(from, to int64) func([]byte) []byte {
	return func(b []byte) []byte {
		clear(b[from:to])
		return b
	}
}

func flip(at int64) func([]byte) []byte {
	return func(b []byte) []byte {
		b[at] ^= 0x10
		return b
	}
}

func header(change func([]byte)) func([]byte) []byte {
	return func(b []byte) []byte {
		change(b)
		frameCRC(b[:96])
		return b
	}
}

func lastFrame(at int64, change func([]byte)) func([]byte) []byte {
	return func(b []byte) []byte {
		change(b[at:])
		frameCRC(b[at:])
		return b
	}
}

func otherMarker(at int64) func([]byte) []byte {
	return lastFrame(at, func(f []byte) { f[7]++ })
}

// TestEveryFlippedBit shows that no single bit gives a batch that was not appended.
func TestEveryFlippedBit(t *testing.T) {
	content := bufferSample(2)
	for bit := range len(content) * 8 {
		flipped := bytes.Clone(content)
		flipped[bit/8] ^= 1 << (bit % 8)
		file, batches, err := scanContent(t, flipped)
		if err != nil {
			t.Fatalf("bit %d: %v", bit, err)
		}
		if len(file.Damage) == 0 && file.TornBytes == 0 {
			t.Errorf("bit %d: not noticed", bit)
		}
		for _, batch := range batches {
			if !cmp.Equal(batch, sampleBatches()[0]) && !cmp.Equal(batch, sampleBatches()[1]) {
				t.Errorf("bit %d: found %v", bit, batch)
			}
		}
	}
}

// TestSearchCrossesWindows hides a long bad stretch before a good frame: the search
// reads it piece by piece, and the marker lies across two of them.
func TestSearchCrossesWindows(t *testing.T) {
	for shift := range 16 {
		sys := faultfs.New()
		dir, err := segments.OpenBufferDir(sys, "/buffer", segments.BufferConfig{})
		if err != nil {
			t.Fatal(err)
		}
		file, err := dir.Create(sampleGateway, 7)
		if err != nil {
			t.Fatal(err)
		}
		// The search starts one byte into the bad frame, at byte 97.
		long := sampleBatches()[0]
		long.Data = make([]byte, 97+64<<10-96-104-12+shift)
		for _, batch := range []segments.RecoveredBatch{long, sampleBatches()[1]} {
			if _, err := file.Append(batch.Span, batch.Info, batch.Data); err != nil {
				t.Fatal(err)
			}
		}
		if err := sys.Flip(samplePath, 8*300); err != nil {
			t.Fatal(err)
		}
		found, err := dir.Scan()
		if err != nil {
			t.Fatal(err)
		}
		if found[0].Batches != 1 || len(found[0].Damage) != 1 || found[0].Damage[0].Length != int64(104+len(long.Data)) {
			t.Errorf("shift %d: %d batches, damage %v", shift, found[0].Batches, found[0].Damage)
		}
	}
}

// TestRecordThatHoldsAFrame tears a batch of which the data is a whole buffer file.
func TestRecordThatHoldsAFrame(t *testing.T) {
	sys, file := openFile(t)
	batch := sampleBatches()[0]
	if _, err := file.Append(batch.Span, batch.Info, bufferSample(3)); err != nil {
		t.Fatal(err)
	}
	content, err := sys.Content(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	_, batches, err := scanContent(t, content[:len(content)-1])
	if err != nil || len(batches) != 0 {
		t.Errorf("a producer's bytes pass for %v, %v", batches, err)
	}
}

func TestBufferGolden(t *testing.T) {
	written := bufferSample(3)
	path := filepath.Join("testdata", "v1"+segments.BufferSuffix)
	if *update {
		writeGolden(t, path, written)
		writeGolden(t, path+".txt", []byte(dumpBuffer(t, written)))
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(golden, written) {
		t.Errorf("%s: %d bytes written now differ from its %d", path, len(written), len(golden))
	}
	want, err := os.ReadFile(path + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), dumpBuffer(t, golden)); diff != "" {
		t.Error(diff)
	}
}

func dumpBuffer(t *testing.T, content []byte) string {
	file, batches, err := scanContent(t, content)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "gateway %s number %d\n%d bytes, %d batches, %d torn, %d damaged\n",
		file.Gateway, file.Number, file.Size, file.Batches, file.TornBytes, len(file.Damage))
	for _, b := range batches {
		fmt.Fprintf(&out, "\n%v\n%+v\n%q\n", b.Span, b.Info, b.Data)
	}
	return out.String()
}

func FuzzScan(f *testing.F) {
	content, ends := sampleFile(3)
	f.Add(content)
	f.Add(content[:ends[1]+50])
	f.Add(flip(ends[0] + 1)(bytes.Clone(content)))
	f.Add(zero(0, 96)(bytes.Clone(content)))
	f.Add(lastFrame(ends[1], func(b []byte) { b[8] = 3 })(bytes.Clone(content)))
	f.Fuzz(func(t *testing.T, content []byte) {
		file, batches, err := scanContent(t, content)
		if err != nil {
			if !errors.Is(err, segments.ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		total := file.TornBytes
		for _, d := range file.Damage {
			total += d.Length
		}
		for _, b := range batches {
			total += int64(104 + len(b.Data) + len(b.Info.FencingToken))
		}
		// What is not bad or a batch can only be the header.
		if n := int64(len(content)); total != n && total != n-96 {
			t.Errorf("%d of %d bytes are accounted for", total, n)
		}
		if len(batches) != file.Batches {
			t.Errorf("%d batches read, %d counted", len(batches), file.Batches)
		}
	})
}
