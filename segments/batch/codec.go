package batch

import "fmt"

// Codec says how the records of a batch are compressed. The values are those of
// the batch's attributes.
type Codec uint8

// The codecs of Kafka.
const (
	None   Codec = 0
	Gzip   Codec = 1
	Snappy Codec = 2
	LZ4    Codec = 3
	Zstd   Codec = 4
)

var codecNames = [...]string{None: "none", Gzip: "gzip", Snappy: "snappy", LZ4: "lz4", Zstd: "zstd"}

// String returns the name that Kafka's tools use, or "codec(N)" for a value that
// no codec has.
func (c Codec) String() string {
	if c.known() {
		return codecNames[c]
	}
	return fmt.Sprintf("codec(%d)", uint8(c))
}

func (c Codec) known() bool { return int(c) < len(codecNames) }

// ParseCodec returns the codec of that name: none, gzip, snappy, lz4 or zstd, in
// lower case. Any other name is [ErrUnsupported].
func ParseCodec(name string) (Codec, error) {
	for c, n := range codecNames {
		if n == name {
			return Codec(c), nil
		}
	}
	return None, fmt.Errorf("%w: codec %q: use one of none, gzip, snappy, lz4, zstd", ErrUnsupported, name)
}
