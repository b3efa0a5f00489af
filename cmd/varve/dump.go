package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments"
)

// maxDump bounds what dump holds in memory: far above what a gateway writes, and below what hurts.
const maxDump = 1 << 30

type dumpFlags struct {
	records, raw           bool
	dataDir, segmentsPlace string
}

func newDumpCommand(a *app) *cobra.Command {
	var f dumpFlags
	cmd := &cobra.Command{
		Use:   "dump FILE|OBJECT|TOPIC/PARTITION@OFFSET",
		Short: "Show what is in a segment, or in the batch that holds an offset",
		Long: `Shows, as kafka-dump-log does, the record batches of

  FILE                    a segment in a local file (.seg), or record batches one after the other, such
                          as --raw writes and Kafka's own .log files
  OBJECT                  a segment object, by its key: through a gateway, or straight from the store of
                          a stopped one with --data or --segments
  TOPIC/PARTITION@OFFSET  the batch that holds an offset, through a gateway

with a line for each span of a segment, and for each record with --records. In a segment, offsets count from
0 in each batch: their place in the log is given at the commit, and lies in the table. In a merged segment (its gateway's id ends in -m)
they are those in the log.

Damage is named with its place, everything readable is shown, and the exit status is 1.`,
		Example: `  varve dump quakes/0@42 --records
  varve dump quakes/0@42 --raw > batch.bin
  varve dump varve-data/segments/c1/g1/00000000000000000001.seg
  varve dump --data varve-data c1/g1/00000000000000000001.seg -o json`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault // files
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.records, "records", false, "show the records of each batch")
	flags.BoolVar(&f.raw, "raw", false, "write the batch's bytes, as any Kafka library reads them; for TOPIC/PARTITION@OFFSET")
	flags.StringVar(&f.dataDir, "data", "", "read OBJECT from this `FOLDER` of a gateway (its --data)")
	flags.StringVar(&f.segmentsPlace, "segments", "", "read OBJECT from this store: the `URL` that a gateway has as --segments")
	excludeEachOther(cmd, "raw", "records")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		target, err := parseTarget(args[0])
		if err != nil {
			return err
		}
		if f.raw && (target.topic == "" || a.json()) {
			return usagef("--raw is for TOPIC/PARTITION@OFFSET, and for no other output")
		}
		data, err := a.fetch(cmd.Context(), target, f)
		if err != nil {
			return err
		}
		if f.raw {
			_, err := a.stdout.Write(data)
			return err
		}
		return a.dump(data, target, f.records)
	}
	return cmd
}

// target is what to dump: one of its three.
type target struct {
	file, object string
	topic        string
	partition    int32
	offset       int64
}

func (t target) String() string {
	switch {
	case t.file != "":
		return t.file
	case t.object != "":
		return t.object
	}
	return fmt.Sprintf("%s/%d@%d", t.topic, t.partition, t.offset)
}

// parseTarget tells the three forms apart. A file that is there comes first.
func parseTarget(arg string) (target, error) {
	if info, err := os.Stat(arg); err == nil && !info.IsDir() {
		return target{file: arg}, nil
	}
	if _, _, _, err := segments.ParseObjectKey(arg); err == nil {
		return target{object: arg}, nil
	}
	if t, ok := parseRecordPlace(arg); ok {
		return t, nil
	}
	if strings.ContainsAny(arg, "@") {
		return target{}, usagef("%q: want TOPIC/PARTITION@OFFSET, for example quakes/0@42", arg)
	}
	return target{}, usagef("%q: there is no such file, and it is neither a segment's key (CLUSTER/GATEWAY/NUMBER.seg) nor TOPIC/PARTITION@OFFSET", arg)
}

// parseRecordPlace reads TOPIC/PARTITION@OFFSET.
func parseRecordPlace(arg string) (target, bool) {
	where, offset, ok := strings.Cut(arg, "@")
	topic, partition, ok2 := strings.Cut(where, "/")
	if !ok || !ok2 || topic == "" || !isDigits(partition) || !isDigits(offset) {
		return target{}, false
	}
	p, err := strconv.ParseInt(partition, 10, 32)
	o, err2 := strconv.ParseInt(offset, 10, 64)
	return target{topic: topic, partition: int32(p), offset: o}, err == nil && err2 == nil
}

// fetch reads what is to be dumped into memory.
func (a *app) fetch(ctx context.Context, t target, f dumpFlags) ([]byte, error) {
	switch {
	case t.file != "":
		return readFile(t.file)
	case t.object != "" && f.dataDir != "":
		return readFile(filepath.Join(f.dataDir, "segments", filepath.FromSlash(t.object)))
	case t.object != "" && f.segmentsPlace != "":
		return readFromStore(ctx, f.segmentsPlace, t.object)
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if t.object != "" {
		return readObject(ctx, c, t.object)
	}
	return readBatch(ctx, c, t)
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := checkSize(path, info.Size()); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

func checkSize(name string, size int64) error {
	if size > maxDump {
		return fmt.Errorf("%s has %d bytes, and dump reads at most %d into memory", name, size, int64(maxDump))
	}
	return nil
}

func readFromStore(ctx context.Context, place, object string) ([]byte, error) {
	l, err := parseLocation("--segments", place, segmentsKeys)
	if err != nil {
		return nil, usagef("%v", err)
	}
	if l.scheme == schemeFile {
		return readFile(filepath.Join(l.path, filepath.FromSlash(object)))
	}
	store, err := openStore(ctx, l)
	if err != nil {
		return nil, err
	}
	store = segments.Retry(store, segments.DefaultRetry())
	// A byte first, for the size.
	_, size, err := store.Get(ctx, object, 0, 1)
	if err == nil {
		err = checkSize(object, size)
	}
	if err != nil {
		return nil, err
	}
	data, _, err := store.Get(ctx, object, 0, -1)
	return data, err
}

func readObject(ctx context.Context, c *client.Client, object string) ([]byte, error) {
	r, err := c.Dump(ctx, object, 0, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := checkSize(object, r.Size()); err != nil {
		return nil, err
	}
	data := make([]byte, r.Size())
	n, err := io.ReadFull(r, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %d of %d bytes came: %w", object, n, len(data), err)
	}
	return data, nil
}

// readBatch reads the batch that holds an offset, as it lies in the log.
func readBatch(ctx context.Context, c *client.Client, t target) ([]byte, error) {
	ends, err := c.ListOffsets(ctx, t.topic, client.LatestOffset(), t.partition)
	if err != nil {
		return nil, err
	}
	for _, e := range ends {
		if t.offset < e.StartOffset || t.offset >= e.EndOffset {
			return nil, fmt.Errorf("%v: the partition has offsets from %d, and its next one is %d", t, e.StartOffset, e.EndOffset)
		}
	}
	k, err := c.NewConsumer(client.ConsumerConfig{
		Topic: t.topic, Partitions: []int32{t.partition}, MaxBytes: 1,
		Start: client.At(t.offset), End: client.At(t.offset + 1),
	})
	if err != nil {
		return nil, err
	}
	for m, err := range k.Batches(ctx) {
		if err != nil {
			return nil, err
		}
		if len(m.Data) > 0 {
			return batchHolding(m.Data, t.offset)
		}
	}
	return nil, fmt.Errorf("%v: no batch holds that offset any more: its record was compacted away", t)
}

// batchHolding cuts the batch with an offset out of batches back to back.
func batchHolding(data []byte, offset int64) ([]byte, error) {
	scan := newBatchScan(data, 0)
	for b, ok := scan.next(); ok; b, ok = scan.next() {
		if b.header.BaseOffset <= offset && offset < b.header.EndOffset() {
			return b.data, nil
		}
	}
	if scan.err != nil {
		return nil, scan.err
	}
	return nil, fmt.Errorf("the gateway sent no batch that holds offset %d", offset)
}

// dump prints data and says whether it was whole.
func (a *app) dump(data []byte, t target, records bool) error {
	out := bufio.NewWriterSize(a.stdout, outputBuffer)
	d := &dumper{out: dumpText{out}, records: records}
	if a.json() {
		d.out = dumpJSON{out}
	}
	if t.topic == "" && isSegment(data, t) {
		d.segment(data, t.object)
	} else {
		d.scan(newBatchScan(data, 0))
	}
	if err := errors.Join(d.err, out.Flush()); err != nil {
		return err
	}
	for _, fault := range d.faults {
		a.notef("%s: %s", t, fault)
	}
	if len(d.faults) > 0 {
		return errReported
	}
	return nil
}

// isSegment tells a segment, damaged or not, from record batches: by its magic, or by its name.
func isSegment(data []byte, t target) bool {
	return t.object != "" || strings.HasSuffix(t.file, segments.Suffix) || strings.HasPrefix(string(data[:min(8, len(data))]), "VARVESEG")
}
