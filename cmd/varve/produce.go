package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// closePatience is how long an interrupted produce waits for the acks of what it has sent.
const closePatience = 10 * time.Second

type produceFlags struct {
	partition      int32
	key, separator string
	headers        []string
	timestamp      string
	format         string
	acks, codec    string
	emptyIsNull    bool
	keepPartitions bool
	expectedOffset int64
	fencingToken   string
}

func newProduceCommand(a *app) *cobra.Command {
	var f produceFlags
	cmd := &cobra.Command{
		Use:   "produce TOPIC [FILE...]",
		Short: "Write lines, of files or standard input, as records",
		Long: `Writes a record for each line of the files, or of standard input.

With --format json a line is a record as 'varve cat -o json' writes it; topic, partition and offset may be
absent, and the partition counts only with --keep-partitions. Without a timestamp a record gets the time of now.

With --expected-offset nothing is written unless that is the partition's next offset, and nothing after somebody
else has written there: the first batch must get offset N, and each one must begin where the one before it
ended. With --fencing-token nothing is written unless T is the partition's token ('varve topic fence').

A record that was read is tried for two minutes, whatever --timeout says; after --timeout without an ack it tells
why it waits.

It stops at the first line or batch that is refused. Standard error gets a summary, and with -o json standard
output a line an ack. Ctrl-C sends what was read, waits for its acks, and tells what was done.`,
		Example: `  echo hello | varve produce hello-world
  varve produce quakes quakes.jsonl --format json
  varve produce clicks -K '\t' -H source=import -z zstd clicks.tsv
  varve cat quakes -o json | varve produce quakes-copy --format json --keep-partitions
  varve produce ledger -p 0 --expected-offset 4711 --fencing-token writer-2 entries.txt`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveDefault),
	}
	flags := cmd.Flags()
	flags.Int32VarP(&f.partition, "partition", "p", -1, "write everything to partition `N`")
	flags.StringVarP(&f.key, "key", "k", "", "the key `K` of all records")
	flags.StringVarP(&f.separator, "key-separator", "K", "", "each line is key, `SEP`, value")
	flags.StringArrayVarP(&f.headers, "header", "H", nil, "a header of all records, `NAME=VALUE` (repeatable)")
	flags.StringVar(&f.timestamp, "timestamp", "", "the `TIME` of records that have none of their own (default: now)")
	flags.StringVar(&f.format, "format", "line", "line, or json")
	flags.StringVar(&f.acks, "acks", "committed", "committed: in the bucket and the table; buffered: on the gateway's disk, sooner")
	flags.StringVarP(&f.codec, "codec", "z", "none", "compress with none, gzip, snappy, lz4 or zstd")
	flags.BoolVarP(&f.emptyIsNull, "empty-is-null", "Z", false, "an empty key or value is null")
	flags.BoolVar(&f.keepPartitions, "keep-partitions", false, "with --format json: the partitions that the records name")
	flags.Int64Var(&f.expectedOffset, "expected-offset", 0, "write only if the next offset of the partition (-p) is `N`, and nobody else writes meanwhile")
	flags.StringVar(&f.fencingToken, "fencing-token", "", "write only if the fencing token of the partition (-p) is `T`")
	excludeEachOther(cmd, "key", "key-separator")
	excludeEachOther(cmd, "partition", "keep-partitions")
	completeWith(cmd, "format", "line", "json")
	completeWith(cmd, "acks", "committed", "buffered")
	completeWith(cmd, "codec", "none", "gzip", "snappy", "lz4", "zstd")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		parser, err := f.parser(cmd, a.now())
		if err != nil {
			return err
		}
		cfg, err := f.producer(cmd, args[0])
		if err != nil {
			return err
		}
		names := args[1:]
		if len(names) == 0 {
			names = []string{stdinName}
		}
		return a.produce(cmd.Context(), cfg, parser, names, f.format == "json")
	}
	return cmd
}

// parser checks the flags that make records.
func (f *produceFlags) parser(cmd *cobra.Command, now time.Time) (recordParser, error) {
	given := cmd.Flags().Changed
	if given("partition") && f.partition < 0 {
		return nil, usagef("--partition %d: partitions count from 0", f.partition)
	}
	var timestamp time.Time
	if f.timestamp != "" {
		var err error
		if timestamp, err = parseTime(f.timestamp, now); err != nil {
			return nil, usagef("--timestamp: %v", err)
		}
	}
	switch f.format {
	case "json":
		for _, flag := range []string{"key", "key-separator", "header"} {
			if given(flag) {
				return nil, usagef("--%s is for lines: with --format json each record has its own", flag)
			}
		}
		return &jsonParser{f.keepPartitions, f.partition, timestamp, f.emptyIsNull}, nil
	case "line":
	default:
		return nil, usagef("--format %q: want line or json", f.format)
	}
	if f.keepPartitions {
		return nil, usagef("--keep-partitions needs --format json: a line names no partition")
	}
	p := &lineParser{timestamp: timestamp, partition: f.partition, emptyIsNull: f.emptyIsNull}
	if given("key") {
		p.key = []byte(f.key)
	}
	if given("key-separator") {
		separator, err := unescape(f.separator)
		if err != nil || separator == "" {
			return nil, usagef("--key-separator %q: want at least one character, for example '\\t'", f.separator)
		}
		p.separator = []byte(separator)
	}
	for _, h := range f.headers {
		name, value, found := strings.Cut(h, "=")
		if !found || name == "" {
			return nil, usagef("--header %q: want NAME=VALUE", h)
		}
		p.headers = append(p.headers, client.Header{Key: name, Value: []byte(value)})
	}
	return p, nil
}

func (f *produceFlags) producer(cmd *cobra.Command, topic string) (client.ProducerConfig, error) {
	cfg := client.ProducerConfig{Topic: topic, Partitioning: client.PartitionAsGiven}
	var err error
	if cfg.Acks, err = client.ParseAcks(f.acks); err != nil {
		return cfg, usagef("--acks %q: want committed or buffered", f.acks)
	}
	if cfg.Codec, err = client.ParseCodec(f.codec); err != nil {
		return cfg, usagef("--codec %q: want none, gzip, snappy, lz4 or zstd", f.codec)
	}
	return cfg, f.conditions(cmd, &cfg)
}

// conditions go with one partition, and with acks that can still refuse.
func (f *produceFlags) conditions(cmd *cobra.Command, cfg *client.ProducerConfig) error {
	given := cmd.Flags().Changed
	for _, flag := range []string{"expected-offset", "fencing-token"} {
		switch {
		case !given(flag):
		case !given("partition"):
			return usagef("--%s needs -p, since each partition has its own", flag)
		case cfg.Acks == client.AcksBuffered:
			return usagef("--%s and --acks buffered exclude each other: what was acknowledged as buffered can't be refused later", flag)
		}
	}
	if given("expected-offset") {
		if f.expectedOffset < 0 {
			return usagef("--expected-offset %d: offsets count from 0", f.expectedOffset)
		}
		cfg.ExpectedOffset = &f.expectedOffset
	}
	if given("fencing-token") {
		if err := checkToken("fencing-token", f.fencingToken); err != nil {
			return err
		}
		cfg.FencingToken = &f.fencingToken
	}
	return nil
}

// produce reads, sends, and tells what was done.
func (a *app) produce(ctx context.Context, cfg client.ProducerConfig, parser recordParser, names []string, isJSON bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	t := newTally(a)
	cfg.OnBatch = t.onBatch
	p, err := c.NewProducer(cfg)
	if err != nil {
		return err
	}
	progress := newProgress(a.stderr, regularSize(names, a.stdin))
	in := &input{ctx: ctx, names: names, stdin: a.stdin, maxLine: maxLine, onRead: progress.add}
	if isJSON {
		in.maxLine = maxJSONLine
	}
	stop := a.watchStalls(t.waiting)
	failure := t.send(ctx, p, in, parser)
	if err := in.close(); failure == nil {
		failure = err
	}
	// What was read is sent, even after a failure or Ctrl-C.
	closing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(closePatience, cancel) })()
	unsent := p.Close(closing)
	stop()
	progress.done()
	return t.conclude(ctx, cfg.Topic, failure, unsent)
}

// tally counts what became of the records.
type tally struct {
	a       *app
	started time.Time
	// stop ends the reading when a batch was refused.
	stop context.CancelCauseFunc

	mu         sync.Mutex
	taken      int64 // by the producer
	acked      int64
	bytes      int64 // of keys and values that were taken
	failed     int64
	unknown    int64
	partitions map[int32]struct{}
	refusal    error
	printed    error // why acks are not printed any more
}

func newTally(a *app) *tally {
	return &tally{a: a, started: time.Now(), partitions: make(map[int32]struct{}), stop: func(error) {}}
}

// send returns nil at the end of the input.
func (t *tally) send(ctx context.Context, p *client.Producer, in *input, parser recordParser) error {
	ctx, t.stop = context.WithCancelCause(ctx)
	defer t.stop(nil)
	in.ctx = ctx
	for {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		r, err := parser.parse(line)
		if err != nil {
			return fmt.Errorf("%v: %w", in.place, err)
		}
		receipt := &receipt{t, in.place}
		if err := p.Produce(ctx, r, receipt.done); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%v: %w", in.place, err)
		}
		t.mu.Lock()
		t.taken++
		t.bytes += int64(len(r.Key) + len(r.Value))
		t.mu.Unlock()
	}
}

// receipt knows where a record came from until its ack is there.
type receipt struct {
	tally *tally
	place position
}

func (r *receipt) done(_ client.Ack, err error) {
	if err != nil {
		r.tally.refused(r.place, err)
	}
}

// refused keeps the first failure, and ends the reading.
func (t *tally) refused(place position, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refusal == nil {
		t.refusal = fmt.Errorf("%v: the batch that begins there was not acknowledged: %w", place, err)
		t.stop(t.refusal)
	}
}

// ackJSON is one line of produce -o json.
type ackJSON struct {
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	BaseOffset int64  `json:"base_offset"`
	LastOffset int64  `json:"last_offset"`
	Acks       string `json:"acks"`
}

func (t *tally) onBatch(ack client.Ack, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, client.ErrUnknownOutcome):
		t.unknown += int64(ack.Records)
	case err != nil:
		t.failed += int64(ack.Records)
	default:
		t.acked += int64(ack.Records)
		t.partitions[ack.Partition] = struct{}{}
		if t.a.json() && t.printed == nil {
			t.printed = printJSON(t.a.stdout, ackJSON{ack.Topic, ack.Partition, ack.BaseOffset, ack.LastOffset, ack.Acks.String()})
		}
	}
}

// waiting returns how many records were answered for, and whether others were not yet.
func (t *tally) waiting() (answered int64, waits bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	answered = t.acked + t.failed + t.unknown
	return answered, answered < t.taken
}

// conclude writes the summary and returns what went wrong. When nobody reads the acks any more the
// import goes on: half of one would be worse.
func (t *tally) conclude(ctx context.Context, topic string, failure, unsent error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.a.notef("%s", t.summary(topic))
	switch {
	case t.refusal != nil:
		return t.refusal
	case ctx.Err() != nil:
		return errInterrupted
	case failure != nil:
		return failure
	case unsent != nil:
		return unsent
	}
	return t.printed
}

func (t *tally) summary(topic string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s acknowledged by %s", count(t.acked, "record"), topic)
	if len(t.partitions) > 0 {
		fmt.Fprintf(&b, " in %s (%s)", count(int64(len(t.partitions)), "partition"), ranges(t.partitions))
	}
	fmt.Fprintf(&b, ", %s, %.2f s", count(t.bytes, "byte"), time.Since(t.started).Seconds())
	if t.failed > 0 {
		fmt.Fprintf(&b, "; %d not written", t.failed)
	}
	if t.unknown > 0 {
		fmt.Fprintf(&b, "; %d may or may not be written", t.unknown)
	}
	if rest := t.taken - t.acked - t.failed - t.unknown; rest > 0 {
		fmt.Fprintf(&b, "; %d not sent", rest)
	}
	return b.String()
}

// ranges writes 0-3,7.
func ranges(set map[int32]struct{}) string {
	var numbers []int32
	for n := range set {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	var parts []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, fmt.Sprint(numbers[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", numbers[i], numbers[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
