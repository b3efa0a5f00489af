package client

import (
	"errors"
	"fmt"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// Acks says what an acknowledgement stands for.
type Acks uint8

const (
	// AcksCommitted: the records are in the bucket and their offsets in the table.
	AcksCommitted Acks = iota
	// AcksBuffered: the records are on the gateway's disk. They survive a crash of its process or host,
	// not the loss of its disk, and the ack carries no offset. What was promised like this can't be
	// refused later, so the API takes no producer ids and no conditions with it.
	AcksBuffered
)

// String returns "committed" or "buffered".
func (a Acks) String() string {
	if a == AcksBuffered {
		return "buffered"
	}
	return "committed"
}

// ParseAcks reads what String writes.
func ParseAcks(s string) (Acks, error) {
	switch s {
	case "committed":
		return AcksCommitted, nil
	case "buffered":
		return AcksBuffered, nil
	}
	return 0, fmt.Errorf("acks %q: want committed or buffered", s)
}

func (a Acks) message() varvev1.Acks {
	if a == AcksBuffered {
		return varvev1.Acks_ACKS_BUFFERED
	}
	return varvev1.Acks_ACKS_COMMITTED
}

func acksOf(m varvev1.Acks) Acks {
	if m == varvev1.Acks_ACKS_BUFFERED {
		return AcksBuffered
	}
	return AcksCommitted
}

// Partitioning says how records find their partitions.
type Partitioning uint8

const (
	// PartitionByKey: murmur2 of the key as Kafka's clients do; without a key, one partition for each
	// batch, in turn. Record.Partition is ignored.
	PartitionByKey Partitioning = iota
	// PartitionAsGiven: Record.Partition; a negative one is by key.
	PartitionAsGiven
)

// NoLinger is a Linger of zero: a batch waits for nothing but room among the requests in flight.
const NoLinger time.Duration = -1

// ProducerConfig says how to produce. The zero value is a good producer.
type ProducerConfig struct {
	// Topic is for records that name none.
	Topic string
	// Acks: AcksBuffered turns idempotence off.
	Acks Acks
	// Codec compresses batches; CodecNone by default, since a gateway has to inflate what it checks. Text
	// that compresses well costs a producer less CPU with lz4 than without; zstd makes it smallest.
	Codec Codec
	// BatchBytes is the size at which a batch is sent, before compression. Default 1 MiB. One record
	// above it travels in a batch of its own.
	BatchBytes int
	// Linger is how long a batch may wait for company. Default 5 ms; NoLinger is none.
	Linger time.Duration
	// MaxInFlight is how many requests may be open at once over all partitions. Default 16. A partition
	// has at most five of them, since that many batches are remembered to recognise a repeated one.
	MaxInFlight int
	// MaxBufferedBytes bounds the records that were accepted and not yet acknowledged. Produce waits
	// while there is no room. Default 64 MiB.
	MaxBufferedBytes int
	// DeliveryTimeout is how long a batch is tried for, from its first record on. Default 2 min.
	DeliveryTimeout time.Duration
	// DisableIdempotence sends batches without a producer id: a batch whose outcome is unknown is not
	// sent again, but reported as such.
	DisableIdempotence bool
	// RepeatUnknown makes a producer without idempotence send such a batch again, until one answer
	// arrives: each record at least once, and perhaps more often.
	RepeatUnknown bool
	// ExpectedOffset, if set, is the offset that the producer's first record must get; each batch expects to begin where
	// the one before it ended. All records go to one partition then (Produce refuses others with ErrInvalid), whose
	// topic must exist. Once somebody else has appended there is ErrOffsetMismatch, and after a batch that failed,
	// whatever the reason, all that follow fail.
	ExpectedOffset *int64
	// FencingToken, if set, must be the token of every partition that is written to; otherwise ErrFenced. Topics must
	// exist.
	FencingToken *string
	// Partitioning is PartitionByKey by default.
	Partitioning Partitioning
	// MetadataMaxAge is after how long a topic's partition count is asked for again. Default 1 min.
	MetadataMaxAge time.Duration
	// OnBatch, if set, is called once for each batch, before the callbacks of its records. It must
	// return soon: it holds up one of the requests in flight.
	OnBatch func(Ack, error)
}

func (cfg ProducerConfig) withDefaults() ProducerConfig {
	setDefault(&cfg.BatchBytes, 1<<20)
	setDefault(&cfg.Linger, 5*time.Millisecond)
	setDefault(&cfg.MaxInFlight, 16)
	setDefault(&cfg.MaxBufferedBytes, 64<<20)
	setDefault(&cfg.DeliveryTimeout, 2*time.Minute)
	setDefault(&cfg.MetadataMaxAge, time.Minute)
	if cfg.Acks == AcksBuffered {
		cfg.DisableIdempotence = true
	}
	return cfg
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate lists every fault at once.
func (cfg ProducerConfig) Validate() error {
	var faults []error
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"batch bytes", int64(cfg.BatchBytes)},
		{"max in flight", int64(cfg.MaxInFlight)},
		{"max buffered bytes", int64(cfg.MaxBufferedBytes)},
		{"delivery timeout", int64(cfg.DeliveryTimeout)},
		{"metadata max age", int64(cfg.MetadataMaxAge)},
	} {
		if f.value < 0 {
			faults = append(faults, fmt.Errorf("%s: must not be negative", f.name))
		}
	}
	if cfg.Acks > AcksBuffered {
		faults = append(faults, fmt.Errorf("acks %d: unknown", cfg.Acks))
	}
	if cfg.Partitioning > PartitionAsGiven {
		faults = append(faults, fmt.Errorf("partitioning %d: unknown", cfg.Partitioning))
	}
	if cfg.RepeatUnknown && !cfg.DisableIdempotence && cfg.Acks != AcksBuffered {
		faults = append(faults, errors.New("repeat unknown: an idempotent producer repeats anyway; disable idempotence or leave it out"))
	}
	if cfg.Acks == AcksBuffered && cfg.conditional() {
		faults = append(faults, errors.New("buffered acks: take no expected offset and no fencing token, which could refuse later what was promised"))
	}
	if cfg.RepeatUnknown && cfg.ExpectedOffset != nil {
		faults = append(faults, errors.New("repeat unknown: an expected offset needs an idempotent producer for that"))
	}
	if cfg.ExpectedOffset != nil && *cfg.ExpectedOffset < 0 {
		faults = append(faults, fmt.Errorf("expected offset %d: must not be negative", *cfg.ExpectedOffset))
	}
	if len(faults) > 0 {
		return fmt.Errorf("producer configuration: %w", errors.Join(faults...))
	}
	return nil
}

// conditional reports whether appends carry conditions.
func (cfg ProducerConfig) conditional() bool {
	return cfg.ExpectedOffset != nil || cfg.FencingToken != nil
}

// Ack is the acknowledgement of a batch; in the callback of a record, that of the record alone.
type Ack struct {
	Topic     string
	Partition int32
	// BaseOffset and LastOffset are -1 with AcksBuffered, when the append failed, and, rarely, for a
	// duplicate so late that the server no longer knows where the first one is.
	BaseOffset, LastOffset int64
	// Records is how many the ack is about.
	Records int
	// Timestamp is the append time for topics that set it, else the largest in the batch.
	Timestamp time.Time
	// Acks is what the answer stands for.
	Acks Acks
	// Duplicate: an earlier try had succeeded, and only its answer was lost.
	Duplicate bool
}
