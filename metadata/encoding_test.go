package metadata

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var updateGolden = flag.Bool("update", false, "rewrite the golden files")

var (
	goldenTime      = time.UnixMilli(1_700_000_000_123)
	goldenPartition = PartitionID{Topic: TopicID{0xab, 0xcd, 15: 0x01}, Number: 5}
)

const (
	goldenGateway  = GatewayID("g018bcfe5687b0102030405")
	goldenUploader = GatewayID("g018bcfe56800a0b0c0d0e0")
)

// goldenChanges is one of each change, applied to a partition.
func goldenChanges() (*Partition, []*Change) {
	p := NewPartition(goldenPartition)
	p.epoch = 3
	batch := func(position int64, producer int64, sequence int32, expected int64) Batch {
		return Batch{Position: position, Size: 70_000, Offsets: 10, Records: 10, MinTimestamp: goldenTime.UnixMilli() - 500,
			MaxTimestamp: goldenTime.UnixMilli() - 3, LastTimestamp: goldenTime.UnixMilli() - 40, CRC: 0xdeadbeef,
			ProducerID: producer, ProducerEpoch: 2, BaseSequence: sequence, ExpectedOffset: expected}
	}
	var changes []*Change
	apply := func(c *Change) {
		if err := p.Apply(c, uint64(len(changes)+1)); err != nil {
			panic(err)
		}
		changes = append(changes, c)
	}
	_, c := p.Judge(&Reference{Partition: goldenPartition, Uploader: goldenUploader, Number: 41, Batches: []Batch{
		batch(64, 1000, 0, NoOffset), batch(70_064, 1000, 10, NoOffset), batch(140_064, 1000, 0, NoOffset), batch(210_064, NoProducer, -1, 7)}})
	apply(c)
	_, c = p.Judge(&Reference{Partition: goldenPartition, Uploader: goldenGateway, Number: 1})
	apply(c)
	c, _ = p.JudgeFence("token", nil, nil)
	apply(c)
	c, _ = p.JudgeTrim(4)
	apply(c)
	apply(p.JudgeClose())
	return p, changes
}

func goldenEntry() []byte {
	_, changes := goldenChanges()
	b := NewEntryBuilder(goldenTime)
	for _, c := range changes {
		b.Add(c)
	}
	return b.Encode()
}

func goldenLease(base GatewayID) []byte {
	p, _ := goldenChanges()
	l := &Lease{Journal: goldenGateway, Through: 5, base: base}
	levels := [][]Child{{summarize(p.tail)}, {summarize(p.tail), {First: 1 << 40, MaxTimestamp: 9, LastTimestamp: 9, Entries: 1, Bytes: 1, Sum: 1}}}
	return encodeLease(l, p, p.byAge(), levels, p.tail)
}

// rowKinds has each kind of row, and of message between gateways (of several versions,
// maybe): a sample, and how it is read into text.
var rowKinds = []struct {
	name   string
	sample func() []byte
	read   func([]byte) (string, error)
}{
	{"journal-opening", func() []byte { return opening{trimmedTo: 77}.encode() }, func(b []byte) (string, error) {
		o, err := decodeOpening(b)
		return fmt.Sprintf("trimmed to %d\n", o.trimmedTo), err
	}},
	{"journal-entry", goldenEntry, readJournalRow},
	{"journal-seal", func() []byte { return encodeSeal(goldenGateway, goldenTime) }, readJournalRow},
	{"lease", func() []byte { return goldenLease("") }, readLeaseText},
	{"lease-taken-long", func() []byte { return goldenLease(goldenUploader) }, readLeaseText},
	{"page", func() []byte { p, _ := goldenChanges(); return encodePage(p.tail) }, func(b []byte) (string, error) {
		entries, err := decodePage(b)
		return entriesText(entries), err
	}},
	{"node", func() []byte {
		p, _ := goldenChanges()
		return encodeNode([]Child{summarize(p.tail), {First: 1 << 40, MinTimestamp: 3, MaxTimestamp: 9, LastTimestamp: 5, Entries: 1, Bytes: 1, Sum: 1}})
	}, func(b []byte) (string, error) {
		children, err := decodeNode(b)
		return childrenText(children), err
	}},
	{"producer", func() []byte {
		p, _ := goldenChanges()
		e := encoder{b: []byte{formatV1}}
		encodeProducer(&e, p.producers[1000])
		return e.b
	}, func(b []byte) (string, error) {
		d := &decoder{b: b}
		d.format()
		s := decodeProducer(d)
		return fmt.Sprintf("%+v\n", *s), d.end()
	}},
	{"topic", func() []byte {
		t := Topic{ID: TopicID{1}, Partitions: 4, Set: map[string]string{"retention.ms": "5"}, State: TopicActive, CreatedAt: goldenTime.UnixMilli()}
		return encodeJSON(t.row())
	}, func(b []byte) (string, error) {
		t, err := decodeTopic(Row{Key: topicKey("name"), Value: b})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%+v\n", *t), nil
	}},
	{"gateway", func() []byte {
		g := Gateway{Address: "127.0.0.1:7481", Peer: "127.0.0.1:7482", Protocol: 1, Zone: "a", Version: "v1", Beat: 9, Floor: 4,
			Partitions: 12, Buffered: 34, State: GatewaySealed, SealedAt: goldenTime.UnixMilli(),
			Clock: goldenTime.UnixMilli() + 5, TopicChanges: 6}
		return encodeJSON(g.row())
	}, func(b []byte) (string, error) {
		g, err := decodeGateway(Row{Key: gatewayKey("g"), Value: b})
		return fmt.Sprintf("%+v\n", g), err
	}},
	{"removed-topic", func() []byte {
		r := RemovedTopic{Name: "quakes", Partitions: 4, Swept: true, Waits: []GatewayID{"g1", "g2"}}
		return encodeJSON(r.row())
	}, func(b []byte) (string, error) {
		r, err := decodeRemoved(Row{Key: removedKey(TopicID{1}), Value: b})
		return fmt.Sprintf("%+v\n", r), err
	}},
	{"references", func() []byte { return EncodeReferences(goldenReferences()) }, func(b []byte) (string, error) {
		refs, err := DecodeReferences(b)
		var out strings.Builder
		for _, ref := range refs {
			fmt.Fprintf(&out, "%s segment %d of %s after %d by number %v\n", ref.Partition, ref.Number, ref.Uploader, ref.Previous, ref.ByNumber)
			for _, b := range ref.Batches {
				fmt.Fprintf(&out, "  %+v\n", b)
			}
		}
		return out.String(), err
	}},
	{"verdict", func() []byte {
		p := NewPartition(goldenPartition)
		v, _ := p.Judge(goldenReferences()[0])
		return EncodeVerdict(v)
	}, func(b []byte) (string, error) {
		v, err := DecodeVerdict(b)
		return fmt.Sprintf("%+v\n", v), err
	}},
	{"view", func() []byte { _, v, _ := goldenViews(); return v.Encode() }, func(b []byte) (string, error) {
		v, err := DecodeView(goldenPartition, b)
		return viewText(v), err
	}},
	{"view-delta", func() []byte { _, _, delta := goldenViews(); return delta }, func(b []byte) (string, error) {
		was, _, _ := goldenViews()
		v, err := was.Follow(b)
		if errors.Is(err, ErrIndexMoved) {
			return err.Error(), nil
		}
		return viewText(v), err
	}},
	{"generation", func() []byte { return encodeJSON(generationRow{formatV1, 12}) }, func(b []byte) (string, error) {
		r, err := decodeGeneration(Row{Key: generationKey, Stamp: Stamp{1, 1}, Value: b})
		return fmt.Sprintf("%+v\n", r), err
	}},
}

func goldenReferences() []*Reference {
	other := PartitionID{Topic: TopicID{0xab, 0xce}, Number: 1}
	batch := func(position int64) Batch {
		return Batch{Position: position, Size: 500, Offsets: 10, Records: 10, MinTimestamp: goldenTime.UnixMilli() - 500, MaxTimestamp: goldenTime.UnixMilli() - 3,
			LastTimestamp: goldenTime.UnixMilli() - 40, CRC: 0xdeadbeef, ProducerID: NoProducer, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: NoOffset}
	}
	produced := func(b Batch) Batch { b.ProducerID, b.ProducerEpoch, b.BaseSequence = 1000, 2, 0; return b }
	expected := func(b Batch) Batch { b.ExpectedOffset = 7; return b }
	fenced := func(b Batch) Batch { b.FencingToken, b.HasFencingToken = "token", true; return b }
	sparse := func(b Batch) Batch { b.Records = 3; return b }
	return []*Reference{
		{Partition: goldenPartition, Uploader: goldenUploader, Number: 41, Batches: []Batch{produced(batch(64)), produced(batch(564)), expected(batch(1064)), batch(1564)}},
		{Partition: other, Uploader: goldenUploader, Number: 41, Previous: 38, Batches: []Batch{fenced(batch(2064)), fenced(sparse(batch(2600)))}},
		{Partition: other, Uploader: goldenGateway, Number: 7, ByNumber: true},
	}
}

// goldenViews are two views, and what leads from one to the other.
func goldenViews() (was, v *View, delta []byte) {
	p := NewPartition(goldenPartition)
	p.epoch, p.fence = 3, "old"
	batch := goldenReferences()[0].Batches[3]
	for number := uint64(1); number <= 2; number++ {
		was = p.View()
		_, c := p.Judge(&Reference{Partition: goldenPartition, Uploader: goldenUploader, Number: number, Previous: number - 1, Batches: []Batch{batch}})
		if err := p.Apply(c, 10*number); err != nil {
			panic(err)
		}
	}
	p.fence, p.start, p.closed = "new", 5, true
	v = p.View()
	delta, ok := v.Since(was)
	if !ok {
		panic("no delta")
	}
	v.Levels = [][]Child{{{First: 0, MaxTimestamp: 9, LastTimestamp: 5, Entries: 1, Bytes: 1, Sum: 1}}}
	v.Tail = v.Tail[1:]
	return was, v, delta
}

func viewText(v *View) string {
	if v == nil {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s epoch %d at %s: %d to %d, %d bytes, fence %q closed %v\n", v.Partition, v.Epoch, v.Stamp, v.Start, v.Next, v.Bytes, v.Fence, v.Closed)
	for i, children := range v.Levels {
		fmt.Fprintf(&out, "level %d\n%s", i, childrenText(children))
	}
	return out.String() + entriesText(v.Tail)
}

func readJournalRow(b []byte) (string, error) {
	row, err := decodeJournalRow(8, b)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "sequence %d seal %v by %q at %d, %d bytes\n", row.Sequence, row.Seal, row.SealedBy, row.Time, row.Size)
	for _, c := range row.Changes {
		fmt.Fprintf(&out, "change %d of %s epoch %d uploader %q number %d offset %d fence %q\n", c.Kind, c.Partition, c.Epoch, c.Uploader, c.Number, c.Offset, c.Fence)
		fmt.Fprintf(&out, "  runs %+v\n  producers %+v\n%s", c.runs, c.producers, entriesText(c.Entries))
	}
	return out.String(), nil
}

func readLeaseText(b []byte) (string, error) {
	l, err := decodeLease(goldenPartition, Row{Key: leaseKey(goldenPartition), Stamp: Stamp{3, 9}, Value: b})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	fmt.Fprintf(&out, "journal %s source %s through %d released %v stamp %s epoch of entries %d\n%s", l.Journal, l.Source(), l.Through, l.Released, l.Stamp, l.state.epoch, l.state.Memory())
	for i, children := range l.state.levels {
		fmt.Fprintf(&out, "level %d\n%s", i, childrenText(children))
	}
	return out.String() + entriesText(l.state.tail), nil
}

func entriesText(entries []Entry) string {
	var out strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&out, "  entry %+v\n", e)
	}
	return out.String()
}

func childrenText(children []Child) string {
	var out strings.Builder
	for _, c := range children {
		fmt.Fprintf(&out, "  child %+v\n", c)
	}
	return out.String()
}

// TestGolden: what was written once is read for ever, as it was.
func TestGolden(t *testing.T) {
	for _, kind := range rowKinds {
		t.Run(kind.name, func(t *testing.T) {
			rowFile, textFile := filepath.Join("testdata", kind.name+".hex"), filepath.Join("testdata", kind.name+".txt")
			if *updateGolden {
				writeGolden(t, rowFile, hex.Dump(kind.sample()))
				text, err := kind.read(kind.sample())
				if err != nil {
					t.Fatal(err)
				}
				writeGolden(t, textFile, text)
			}
			dump, err := os.ReadFile(rowFile)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(dump), hex.Dump(kind.sample())); diff != "" {
				t.Errorf("the row is written otherwise (-golden +now):\n%s", diff)
			}
			want, err := os.ReadFile(textFile)
			if err != nil {
				t.Fatal(err)
			}
			got, err := kind.read(undump(t, string(dump)))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("the row is read otherwise (-golden +now):\n%s", diff)
			}
		})
	}
}

// TestGatewayRowBeforePeers: rows of the first version have no peer service.
func TestGatewayRowBeforePeers(t *testing.T) {
	dump, err := os.ReadFile(filepath.Join("testdata", "gateway-before-peers.hex"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeGateway(Row{Key: gatewayKey("g"), Value: undump(t, string(dump))})
	want := Gateway{ID: "g", Address: "127.0.0.1:7481", Zone: "a", Version: "v1", Beat: 9, Floor: 4, State: GatewayDraining}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// TestRowsBeforePacked: pages and lease rows of before their entries were packed are read as ever.
func TestRowsBeforePacked(t *testing.T) {
	for _, kind := range rowKinds {
		dump, err := os.ReadFile(filepath.Join("testdata", kind.name+"-before-packed.hex"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		want, _ := os.ReadFile(filepath.Join("testdata", kind.name+".txt"))
		got, err := kind.read(undump(t, string(dump)))
		if diff := cmp.Diff(string(want), got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", kind.name, err, diff)
		}
	}
}

// TestPackedEntries: whatever entries say, they come back, and what is alike takes little.
func TestPackedEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var entries []Entry
		end := rapid.Int64Range(0, 5).Draw(t, "first")
		few := func(name string) int64 { return rapid.Int64Range(1, 3).Draw(t, name) }
		for range rapid.IntRange(0, 20).Draw(t, "entries") {
			e := Entry{First: end + few("gap") - 1, Gateway: GatewayID(fmt.Sprint("g", few("gateway"))), Number: uint64(few("number")), Position: few("position"),
				Length: few("length"), MinTimestamp: few("timestamp"), Sum: uint64(few("sum")), Clean: few("clean") == 1}
			e.End = e.First + few("offsets")
			e.Records = e.End - e.First - few("missing")/3
			e.MaxTimestamp = e.MinTimestamp + few("span")/2
			e.LastTimestamp = e.MaxTimestamp - few("last")/3
			if few("points") == 1 {
				e.Points = []Point{{e.First, e.Position, e.MaxTimestamp, e.LastTimestamp}, {e.End, e.Position + e.Length, e.MaxTimestamp, e.LastTimestamp}}
			}
			entries, end = append(entries, e), e.End
		}
		got, err := decodePage(encodePage(entries))
		if diff := cmp.Diff(entries, got); err != nil || diff != "" {
			t.Fatalf("%v\n%s", err, diff)
		}
	})
	var alike []Entry
	for n := range int64(48) {
		alike = append(alike, Entry{First: n, End: n + 1, Records: 1, Gateway: goldenGateway, Number: uint64(n) + 5, Position: 4<<20 + n, Length: 770,
			MinTimestamp: 1_700_000_000_000 + n*250, MaxTimestamp: 1_700_000_000_000 + n*250, LastTimestamp: 1_700_000_000_000 + n*250, Sum: 1 << 60})
	}
	if size := len(encodePage(alike)); size > 48*17 {
		t.Errorf("48 entries alike take %d bytes", size)
	}
}

// TestCutPage: a page does not begin a unit for a few entries, and leaves none behind that would make a page.
func TestCutPage(t *testing.T) {
	var tail []Entry
	for n := range int64(400) {
		tail = append(tail, Entry{First: n, End: n + 1, Records: 1, Gateway: goldenGateway, Number: uint64(n) + 5, Position: 4<<20 + n, Length: 770,
			MinTimestamp: n * 250, MaxTimestamp: n * 250, LastTimestamp: n * 250, Sum: 1 << 60})
		if len(tail) < pageAt {
			continue
		}
		cut, value := cutPage(tail)
		entries, err := decodePage(value)
		left := len(tail) - cut
		if err != nil || len(entries) != cut || cut < 1 || cut > fanOut {
			t.Fatalf("%d entries: a page of %d, %v", len(tail), cut, err)
		}
		over := (len(value) + rowKey) % rowUnit
		if cut < min(len(tail), fanOut) && (left >= pageAt || over < rowUnit-40) {
			t.Errorf("%d entries: a page of %d leaves %d, and takes %d of its last unit", len(tail), cut, left, over)
		}
		if left == 0 && len(value)+rowKey > rowUnit && over > 0 && over < 300 {
			t.Errorf("%d entries: a unit is begun for %d bytes", len(tail), over)
		}
	}
}

func writeGolden(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// undump reads what hex.Dump wrote.
func undump(t *testing.T, dump string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(dump) {
		if len(line) < 58 {
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(line[10:58], " ", ""))
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out = append(out, b...)
	}
	return out
}

// TestDamage cuts each row everywhere and turns each of its bits.
func TestDamage(t *testing.T) {
	for _, kind := range rowKinds {
		row := kind.sample()
		for n := range row {
			if _, err := kind.read(row[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s cut at %d of %d: %v", kind.name, n, len(row), err)
			}
		}
		for i := range row {
			for bit := range 8 {
				bad := bytes.Clone(row)
				bad[i] ^= 1 << bit
				if _, err := kind.read(bad); err != nil && !errors.Is(err, ErrCorrupt) {
					t.Errorf("%s byte %d bit %d: %v", kind.name, i, bit, err)
				}
			}
		}
		if _, err := kind.read(append(bytes.Clone(row), 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s with a byte more: %v", kind.name, err)
		}
		newer := bytes.Clone(row)
		if newer[0] == '{' {
			newer = bytes.Replace(row, []byte(`"format":1`), []byte(`"format":2`), 1)
		} else {
			newer[0] = 2
		}
		if _, err := kind.read(newer); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "newer varve") {
			t.Errorf("%s of a newer format: %v", kind.name, err)
		}
	}
}

// TestLyingCounts: a row that claims more than it holds costs no memory.
func TestLyingCounts(t *testing.T) {
	for _, kind := range rowKinds {
		row := kind.sample()
		for i := range row {
			bad := append(bytes.Clone(row[:i]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)
			bad = append(bad, row[i:]...)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _ = kind.read(bad)
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("%s with a large number at %d: %d bytes allocated", kind.name, i, used)
			}
		}
	}
}

// TestImplausibleLengths: damage that makes an entry longer than any segment, or a chunk of it longer than can be read at once, is found
// where the row is read, before somebody asks for the memory.
func TestImplausibleLengths(t *testing.T) {
	for _, c := range []struct {
		what  string
		entry Entry
		ok    bool
	}{
		{"short", Entry{Length: 1 << 20}, true},
		{"longest", Entry{Position: maxObject - maxChunk, Length: maxChunk}, true},
		{"beyond the longest segment", Entry{Position: maxObject - 1, Length: 2}, false},
		{"one long chunk", Entry{Length: maxChunk + 1}, false},
		{"several chunks", Entry{Length: 2 * maxChunk, Points: []Point{{}, {Offset: 1, Position: maxChunk}}}, true},
		{"a long first chunk", Entry{Length: 2 * maxChunk, Points: []Point{{}, {Offset: 1, Position: maxChunk + 1}}}, false},
		{"a long last chunk", Entry{Length: 2 * maxChunk, Points: []Point{{}, {Offset: 1, Position: maxChunk - 1}}}, false},
		{"a length of 2^62", Entry{Length: 1 << 62}, false},
	} {
		e := c.entry
		e.End, e.Records, e.Gateway, e.Number = 2, 2, "g", 1
		if _, err := decodePage(encodePage([]Entry{e})); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, as a page: %v", c.what, err)
		}
		b := NewEntryBuilder(time.UnixMilli(0))
		b.Add(&Change{Kind: ChangeAppend, Uploader: "g", Number: 1, Entries: []Entry{e}})
		if _, err := decodeJournalRow(1, b.Encode()); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, in a journal: %v", c.what, err)
		}
	}
}

func FuzzRows(f *testing.F) {
	for i, kind := range rowKinds {
		f.Add(uint8(i), kind.sample())
	}
	f.Fuzz(func(t *testing.T, kind uint8, row []byte) {
		k := rowKinds[int(kind)%len(rowKinds)]
		if _, err := k.read(row); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", k.name, err)
		}
	})
}

// wide draws numbers of every length.
func wide(rt *rapid.T, what string) int64 {
	return rapid.Int64Range(0, 1<<rapid.IntRange(1, 55).Draw(rt, "bits")).Draw(rt, what)
}

func drawEntry(rt *rapid.T, first int64) Entry {
	e := Entry{Clean: rapid.Bool().Draw(rt, "clean"), First: first, Gateway: GatewayID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "gateway")),
		Number: uint64(wide(rt, "number")), Position: rapid.Int64Range(0, maxObject/2).Draw(rt, "position"), Length: rapid.Int64Range(0, maxChunk).Draw(rt, "length"), Sum: rapid.Uint64().Draw(rt, "sum"),
		MinTimestamp: wide(rt, "min")}
	e.End = first + wide(rt, "offsets")
	e.Records = e.End - first - rapid.Int64Range(0, e.End-first).Draw(rt, "compacted")
	e.MaxTimestamp = e.MinTimestamp + wide(rt, "max")
	e.LastTimestamp = e.MaxTimestamp - wide(rt, "last")
	offset, position := e.First, e.Position
	for range rapid.IntRange(0, 4).Draw(rt, "points") {
		p := Point{Offset: offset, Position: position, MaxTimestamp: e.MaxTimestamp - wide(rt, "point max")}
		p.LastTimestamp = p.MaxTimestamp - wide(rt, "point last")
		e.Points = append(e.Points, p)
		offset = rapid.Int64Range(offset, e.End).Draw(rt, "offset")
		position = rapid.Int64Range(position, e.Position+e.Length).Draw(rt, "at")
	}
	return e
}

func drawEntries(rt *rapid.T) []Entry {
	var entries []Entry
	first := wide(rt, "first")
	for range rapid.IntRange(0, 5).Draw(rt, "entries") {
		e := drawEntry(rt, first)
		entries, first = append(entries, e), e.End
	}
	return entries
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		entries := drawEntries(rt)
		got, err := decodePage(encodePage(entries))
		if diff := cmp.Diff(entries, got); err != nil || diff != "" {
			rt.Fatalf("page: %v\n%s", err, diff)
		}
		children := drawChildren(rt, 0)
		gotChildren, err := decodeNode(encodeNode(children))
		if diff := cmp.Diff(children, gotChildren); err != nil || diff != "" {
			rt.Fatalf("node: %v\n%s", err, diff)
		}
	})
}

func drawChildren(rt *rapid.T, least int) []Child {
	var children []Child
	first := wide(rt, "first")
	for range rapid.IntRange(least, 5).Draw(rt, "children") {
		c := Child{First: first, MinTimestamp: wide(rt, "min"), Bytes: wide(rt, "bytes"), Entries: 1 + wide(rt, "entries"), Sum: rapid.Uint64().Draw(rt, "sum"),
			Row: rapid.SampledFrom([]uint64{0, 0, 1, 1 << 63}).Draw(rt, "row")}
		c.MaxTimestamp = c.MinTimestamp + wide(rt, "max")
		c.LastTimestamp = c.MaxTimestamp - wide(rt, "last")
		children, first = append(children, c), first+1+wide(rt, "next")
	}
	return children
}

func TestRoundTripChange(t *testing.T) {
	unexported := cmp.AllowUnexported(Change{}, answerRun{}, producerAppend{}, swapping{})
	rapid.Check(t, func(rt *rapid.T) {
		now := time.UnixMilli(wide(rt, "now"))
		b := NewEntryBuilder(now)
		var want []Change
		for range rapid.IntRange(0, 5).Draw(rt, "changes") {
			c := Change{Partition: PartitionID{TopicID{rapid.Byte().Draw(rt, "topic")}, rapid.Int32Range(0, MaxPartitions).Draw(rt, "partition")},
				Epoch: uint64(wide(rt, "epoch")), Kind: ChangeKind(rapid.IntRange(1, 5).Draw(rt, "kind"))}
			switch c.Kind {
			case ChangeAppend:
				c.Uploader, c.Number, c.Entries = "up", uint64(wide(rt, "number")), drawEntries(rt)
				for range rapid.IntRange(0, 3).Draw(rt, "runs") {
					r := answerRun{outcome: Outcome(rapid.IntRange(1, 8).Draw(rt, "outcome")), batches: rapid.Uint32().Draw(rt, "count"), offset: NoOffset, actual: NoOffset}
					if r.outcome.placed() {
						r.offset = wide(rt, "offset")
					} else {
						r.actual = wide(rt, "actual") - 1
					}
					c.runs = append(c.runs, r)
				}
				for range rapid.IntRange(0, 3).Draw(rt, "producers") {
					c.producers = append(c.producers, producerAppend{id: wide(rt, "id"), epoch: rapid.Int16Range(0, 32767).Draw(rt, "epoch"),
						first: rapid.Int32Range(0, 1<<31-1).Draw(rt, "s"), last: rapid.Int32Range(0, 1<<31-1).Draw(rt, "e"), offset: wide(rt, "offset"), fresh: rapid.Bool().Draw(rt, "fresh")})
				}
			case ChangeTrim:
				c.Offset = wide(rt, "offset")
			case ChangeFence:
				c.Fence = rapid.String().Draw(rt, "fence")
			case ChangeSwap:
				c.Uploader, c.Number = "up", uint64(wide(rt, "number"))
				switch rapid.IntRange(0, 2).Draw(rt, "swap") {
				case 0:
					c.runs = []answerRun{{outcome: SwapRefused, batches: 1, offset: NoOffset, actual: NoOffset}}
				case 1:
					c.swap = &swapping{level: tailLevel, from: wide(rt, "from")}
					c.Entries = drawEntries(rt)
				case 2:
					c.swap = &swapping{level: rapid.IntRange(0, maxLevels-1).Draw(rt, "level"), from: wide(rt, "from"), children: drawChildren(rt, 1)}
				}
				if c.swap != nil {
					c.swap.to = c.swap.from + 1 + wide(rt, "offsets")
					c.runs = []answerRun{{outcome: Accepted, batches: 1, offset: c.swap.from, actual: NoOffset}}
				}
			}
			before := len(b.Encode())
			bound := b.measure(&c)
			b.Add(&c)
			if grew := len(b.Encode()) - before; grew > bound+16+24 { // a topic and a gateway more
				rt.Fatalf("a change took %d bytes, measured %d", grew, bound)
			}
			want = append(want, c)
		}
		row, err := decodeJournalRow(1, b.Encode())
		if err != nil {
			rt.Fatal(err)
		}
		if len(want) == 0 {
			return
		}
		if diff := cmp.Diff(want, row.Changes, unexported); diff != "" {
			rt.Fatal(diff)
		}
	})
}

// TestImplausible: numbers that decode, but would make readers ask for bytes or offsets
// that cannot be.
func TestImplausible(t *testing.T) {
	good := Entry{First: 10, End: 20, Position: 100, Length: 50, Points: []Point{{Offset: 10, Position: 100}, {Offset: 15, Position: 120}}}
	if _, err := decodePage(encodePage([]Entry{good})); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Entry){
		"ends before it begins":         func(e *Entry) { e.End, e.Points = 9, nil },
		"begins below zero":             func(e *Entry) { e.First, e.Points = -1, nil },
		"lies before the object":        func(e *Entry) { e.Position, e.Points = -5, nil },
		"has less than no bytes":        func(e *Entry) { e.Length, e.Points = -1, nil },
		"ends beyond all bytes":         func(e *Entry) { e.Position, e.Points = 1<<63-10, nil },
		"first point is not its start":  func(e *Entry) { e.Points[0].Offset = 11 },
		"first point lies elsewhere":    func(e *Entry) { e.Points[0].Position = 101 },
		"point after its last offset":   func(e *Entry) { e.Points[1].Offset = 21 },
		"point after its last byte":     func(e *Entry) { e.Points[1].Position = 151 },
		"point before the one before":   func(e *Entry) { e.Points[1].Offset = 9 },
		"point's bytes before the last": func(e *Entry) { e.Points[1].Position = 99 },
	} {
		e := good
		e.Points = append([]Point(nil), good.Points...)
		spoil(&e)
		if _, err := decodePage(encodePage([]Entry{e})); !errors.Is(err, ErrCorrupt) {
			t.Errorf("an entry that %s: %v", name, err)
		}
	}
	if _, err := decodePage(encodePage([]Entry{good, good})); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the same entry twice: %v", err)
	}
	if _, err := decodeNode(encodeNode([]Child{{First: 5}, {First: 5}})); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the same child twice: %v", err)
	}
	if _, err := decodeNode(encodeNode(make([]Child, fanOut+1))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("too many children: %v", err)
	}
	for _, bad := range [][2]int64{{5, 4}, {-1, 4}} {
		p := NewPartition(goldenPartition)
		p.start, p.next = bad[0], bad[1]
		if _, err := readLeaseText(encodeLease(&Lease{Journal: "g"}, p, nil, nil, nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a log from %d to %d: %v", bad[0], bad[1], err)
		}
	}
}
