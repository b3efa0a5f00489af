package batch

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// zstdEncoder serves all goroutines. As with zstdDecoder its channel must not be
// made in a synctest bubble, so it is warmed up when the program starts. Each of its
// coders has tables of some 1.3 MB, untouched until it is used.
var zstdEncoder = newZstdEncoder()

func newZstdEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(min(runtime.GOMAXPROCS(0), 4)),
		zstd.WithEncoderCRC(false), // the batch has its own
		zstd.WithWindowSize(1<<20),
		zstd.WithZeroFrames(true),
	)
	if err != nil {
		panic(err) // the options are constant
	}
	e.EncodeAll(nil, nil)
	return e
}

// deflater holds the writers that are worth using again.
type deflater struct {
	out  output
	gzip *gzip.Writer
	lz4  *lz4.Writer
}

var deflaters = sync.Pool{New: func() any { return newDeflater() }}

func newDeflater() *deflater {
	d := &deflater{gzip: gzip.NewWriter(nil), lz4: lz4.NewWriter(nil)}
	// As Kafka's Java client writes: small blocks need little memory in readers,
	// and a checksum would only repeat what the batch's CRC says.
	if err := d.lz4.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false)); err != nil {
		panic(err) // the options are constant
	}
	return d
}

// output is a writer that appends.
type output struct{ b []byte }

func (o *output) Write(p []byte) (int, error) {
	o.b = append(o.b, p...)
	return len(p), nil
}

// appendDeflated appends src to dst, compressed.
func appendDeflated(dst []byte, c Codec, src []byte) ([]byte, error) {
	switch c {
	case None:
		return append(dst, src...), nil
	case Snappy:
		return append(dst, snappy.Encode(nil, src)...), nil
	case Zstd:
		return zstdEncoder.EncodeAll(src, dst), nil
	case Gzip, LZ4:
		d := deflaters.Get().(*deflater)
		defer deflaters.Put(d)
		return d.stream(dst, c, src)
	}
	return nil, fmt.Errorf("%w: %s", ErrUnsupported, c)
}

// stream compresses with one of the codecs that write to an io.Writer. Writing to
// memory does not fail, so an error is a fault of the codec.
func (d *deflater) stream(dst []byte, c Codec, src []byte) ([]byte, error) {
	d.out.b = dst
	defer func() { d.out.b = nil }()
	var err error
	if c == Gzip {
		d.gzip.Reset(&d.out)
		if _, err = d.gzip.Write(src); err == nil {
			err = d.gzip.Close()
		}
	} else {
		d.lz4.Reset(&d.out)
		if _, err = d.lz4.Write(src); err == nil {
			err = d.lz4.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s failed to compress: %w", ErrInvalid, c, err)
	}
	return d.out.b, nil
}
