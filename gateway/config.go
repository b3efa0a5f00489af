package gateway

import (
	"errors"
	"fmt"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/blockcache"
)

// Config is what a gateway may be told. The zero value of a field means its default.
type Config struct {
	// Address is published in the gateway's row, for people. So is Zone: gateways of the same one, if it is named,
	// read blocks from the bucket for each other.
	Address, Zone string
	// PeerAddress is where other gateways reach [Gateway.PeerServer], host:port. Needed
	// unless Exclusive.
	PeerAddress string
	// CheckAddress has a start call PeerAddress, which must lead to this gateway.
	CheckAddress bool
	// Version of the program.
	Version string
	// Role is metadata.RoleAll, RoleGateway or RoleCompactor: see there.
	Role string

	// FlushInterval spaces flushes (default 250 ms; a few ms suit a local folder). An
	// append that meets a quiet gateway is flushed at once.
	FlushInterval time.Duration
	// CycleInterval spaces the sequencer's commits (default: a fifth of FlushInterval;
	// negative: not at all).
	CycleInterval time.Duration
	// SegmentBytes seals the open segment (default 8 MiB).
	SegmentBytes int64
	// SegmentBatches seals it too, so that its references fit few journal entries
	// (default 50,000).
	SegmentBatches int
	// UploadBytes bounds the segments that are being uploaded or committed (default 64 MiB).
	UploadBytes int64
	// BufferBytes bounds the appends in memory that are not committed (default 128 MiB).
	// Appends beyond it wait for AdmitWait, then are refused.
	BufferBytes int64
	// RequestBytes bounds the bodies of produce requests in memory (default 128 MiB).
	RequestBytes int64
	// AdmitWait is how long an append waits for room (default 2 s).
	AdmitWait time.Duration
	// FreshBytes is how much of the newest segments stays in memory for followers (default 16 MiB).
	FreshBytes int64
	// IndexCacheBytes is how much of the indexes' pages and nodes, decoded, stays in memory (default 16 MiB).
	IndexCacheBytes int64

	// CacheBytes is how much of what was read from the bucket stays in memory (default 256 MiB; negative: nothing, which
	// suits files, since the system caches them). CacheBlockBytes is the size of its blocks (default 2 MiB).
	CacheBytes      int64
	CacheBlockBytes int
	// ReadBytes bounds the messages of records that are being made or sent, with the transport's copies (default 128 MiB).
	ReadBytes int64
	// ColdBytes bounds what is on its way from the bucket for readers of old data (default 32 MiB), ColdRate how
	// many bytes they get from there in a second while somebody appends or follows (default 64 MiB; negative: no bound).
	ColdBytes, ColdRate int64
	// AheadBytes is the most that is read ahead for a reader of old data (default 8 MiB; negative: nothing).
	AheadBytes int64
	// HedgeShare is the share of GETs that may be sent a second time because they are late (default 0.05; negative: none).
	HedgeShare float64

	// MaxRequestBytes bounds one request message (default 16 MiB).
	MaxRequestBytes int
	// MaxMessageBytes bounds one response message of record batches (default 8 MiB).
	MaxMessageBytes int

	// AutoCreate is the partition count of topics that the first produce makes; 0: none.
	AutoCreate int32

	// LeaseTime is how long a gateway may be silent before others call it dead (default 5 s).
	LeaseTime time.Duration
	// Exclusive: nobody else can reach the table (embedded): no beats, and a
	// predecessor is dead for certain.
	Exclusive bool
	// CloseAfter is how long the buffer of a gateway that died is waited for, before it counts
	// as lost (default 7 days; negative: for ever).
	CloseAfter time.Duration
	// StartTime is how long a start goes on when bucket or table do not answer. 0: it
	// fails with the first call that was tried as often as any other.
	StartTime time.Duration
	// FoldRows and FoldBytes say when partitions are checkpointed: when the journal holds more rows
	// (default 64) and more bytes (default 4 MiB) than this that no checkpoint has; FoldBytes is stretched, to eight times as
	// much at most, where very many partitions have changes (2.5 KiB of journal each). It is trimmed
	// FoldRows at a time, or 4 MiB.
	FoldRows, FoldBytes int
	// DrainTime bounds a clean shutdown (default 25 s).
	DrainTime time.Duration
}

func (c Config) withDefaults() Config {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	setTime := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	setInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	setTime(&c.FlushInterval, 250*time.Millisecond)
	setTime(&c.CycleInterval, c.FlushInterval/5)
	set(&c.SegmentBytes, 8<<20)
	setInt(&c.SegmentBatches, 50_000)
	set(&c.UploadBytes, 64<<20)
	set(&c.BufferBytes, 128<<20)
	set(&c.RequestBytes, 128<<20)
	setTime(&c.AdmitWait, 2*time.Second)
	set(&c.FreshBytes, 16<<20)
	set(&c.IndexCacheBytes, 16<<20)
	set(&c.CacheBytes, 256<<20)
	setInt(&c.CacheBlockBytes, blockcache.DefaultBlockBytes)
	set(&c.ReadBytes, 128<<20)
	set(&c.ColdBytes, 32<<20)
	set(&c.ColdRate, 64<<20)
	set(&c.AheadBytes, 8<<20)
	if c.HedgeShare == 0 {
		c.HedgeShare = 0.05
	}
	setInt(&c.MaxRequestBytes, 16<<20)
	setInt(&c.MaxMessageBytes, 8<<20)
	setInt(&c.FoldRows, 64)
	setInt(&c.FoldBytes, 4<<20)
	setTime(&c.LeaseTime, 5*time.Second)
	setTime(&c.DrainTime, 25*time.Second)
	setTime(&c.CloseAfter, 7*24*time.Hour)
	return c
}

// Validate lists every fault at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var faults []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	check(c.FlushInterval > 0 && c.FlushInterval <= 10*time.Second, "flush interval %s: want up to 10s", c.FlushInterval)
	check(c.SegmentBytes >= 64<<10 && c.SegmentBytes <= 64<<20, "segment size %d: want 64 KiB to 64 MiB", c.SegmentBytes)
	check(c.SegmentBatches > 0 && c.SegmentBatches <= 500_000, "%d batches a segment: want 1 to 500,000", c.SegmentBatches)
	check(c.UploadBytes >= c.SegmentBytes, "upload limit %d is below one segment of %d bytes", c.UploadBytes, c.SegmentBytes)
	check(c.BufferBytes >= c.SegmentBytes, "buffer limit %d is below one segment of %d bytes", c.BufferBytes, c.SegmentBytes)
	check(int64(c.MaxRequestBytes) <= c.BufferBytes, "a request of %d bytes cannot fit the buffer limit %d", c.MaxRequestBytes, c.BufferBytes)
	check(int64(c.MaxRequestBytes) <= c.RequestBytes, "a request of %d bytes cannot fit the request limit %d", c.MaxRequestBytes, c.RequestBytes)
	check(c.MaxMessageBytes >= 64<<10, "message limit %d: want at least 64 KiB", c.MaxMessageBytes)
	check(c.CacheBlockBytes >= 4<<10 && c.CacheBlockBytes <= fetchBytes, "blocks of %d bytes: want 4 KiB to 10 MiB", c.CacheBlockBytes)
	check(c.CacheBytes < 0 || c.CacheBytes >= int64(c.CacheBlockBytes), "a cache of %d bytes holds no block of %d", c.CacheBytes, c.CacheBlockBytes)
	check(c.ReadBytes >= messageCopies*int64(c.MaxMessageBytes), "a message of %d bytes and its copy do not fit the read limit %d", c.MaxMessageBytes, c.ReadBytes)
	check(c.IndexCacheBytes > 0, "an index cache of %d bytes: want at least 1", c.IndexCacheBytes)
	check(c.ColdBytes > 0, "limit of %d bytes for cold reads: want at least 1", c.ColdBytes)
	check(c.HedgeShare <= 1, "second tries for %g of the reads: want at most 1", c.HedgeShare)
	check(c.AutoCreate >= 0 && c.AutoCreate <= metadata.MaxPartitions, "auto-create with %d partitions: want 0 to %d", c.AutoCreate, metadata.MaxPartitions)
	check(c.Exclusive || c.PeerAddress != "", "no address for peers: gateways that share a table must reach each other")
	check(c.FoldRows > 0 && c.FoldBytes > 0, "checkpoints after %d rows and %d bytes: want at least 1 of both", c.FoldRows, c.FoldBytes)
	check(c.Role == metadata.RoleAll || c.Role == metadata.RoleGateway || c.Role == metadata.RoleCompactor, "role %q: want all, gateway or compactor", c.Role)
	check(!c.Exclusive || c.Role != metadata.RoleCompactor, "a compactor on a table that only one process can reach: nobody would take appends")
	check(c.LeaseTime >= 500*time.Millisecond, "lease time %s: want at least 500ms", c.LeaseTime)
	return errors.Join(faults...)
}
