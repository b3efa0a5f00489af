package client

import "github.com/varvelog/varve/segments/batch"

// Codec compresses record batches.
type Codec = batch.Codec

// The codecs of the record batch format.
const (
	CodecNone   = batch.None
	CodecGzip   = batch.Gzip
	CodecSnappy = batch.Snappy
	CodecLZ4    = batch.LZ4
	CodecZstd   = batch.Zstd
)

// ParseCodec reads none, gzip, snappy, lz4 or zstd.
func ParseCodec(name string) (Codec, error) { return batch.ParseCodec(name) }
