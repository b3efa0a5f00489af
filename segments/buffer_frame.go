package segments

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

// BufferVersion is the version of the buffer's file format that this package writes,
// and the newest that it reads. docs/buffer-format.md specifies it.
const BufferVersion = 1

// MaxBufferedBatch is the largest batch that fits into a frame, in bytes. It bounds
// what a scan allocates for a length that it finds on disk.
const MaxBufferedBatch = 64 << 20

const (
	bufferMagic      = "VARVEBUF"
	bufferHeaderSize = 96
	markerSize       = 8
	frameHeadSize    = 104
	maxFrame         = frameHeadSize + MaxFencingToken + MaxBufferedBatch

	flagFrameToken = 1
)

// marker starts every frame of one file. It is random, so that no bytes that a
// producer sends, and none that an older file left on disk, pass for a frame when a
// scan searches for the next good one.
type marker [markerSize]byte

// bufferHeader is the start of a buffer file.
type bufferHeader struct {
	marker  marker
	gateway GatewayID
	number  uint64
}

func appendBufferHeader(out []byte, h bufferHeader) []byte {
	start := len(out)
	out = append(out, bufferMagic...)
	out = binary.BigEndian.AppendUint32(out, BufferVersion)
	out = binary.BigEndian.AppendUint32(out, 0)
	out = append(out, h.marker[:]...)
	out = binary.BigEndian.AppendUint64(out, h.number)
	out = append(out, h.gateway...)
	out = append(out, make([]byte, start+bufferHeaderSize-len(out))...)
	binary.BigEndian.PutUint32(out[start+12:], checksumAround(out[start:]))
	return out
}

// parseBufferHeader reads a header of bufferHeaderSize bytes. The checksum comes
// before the version: both keep their places in every version, so a flipped bit is
// not taken for a newer program's file.
func parseBufferHeader(in []byte) (bufferHeader, error) {
	if string(in[:8]) != bufferMagic {
		return bufferHeader{}, fmt.Errorf("%w: magic %q, want %q", ErrCorrupt, in[:8], bufferMagic)
	}
	if got, want := checksumAround(in), binary.BigEndian.Uint32(in[12:]); got != want {
		return bufferHeader{}, fmt.Errorf("%w: header has CRC-32C %08x, its bytes have %08x", ErrCorrupt, want, got)
	}
	version := binary.BigEndian.Uint32(in[8:])
	if version > BufferVersion {
		return bufferHeader{}, fmt.Errorf("%w: the buffer file has version %d, this program reads up to %d: "+
			"start the newer varve to finish it", ErrVersion, version, BufferVersion)
	}
	h := bufferHeader{
		marker:  marker(in[16:]),
		number:  binary.BigEndian.Uint64(in[24:]),
		gateway: GatewayID(strings.TrimRight(string(in[32:bufferHeaderSize]), "\x00")),
	}
	if err := h.gateway.Validate(); version == 0 || h.number == 0 || err != nil {
		return bufferHeader{}, fmt.Errorf("%w: header of version %d, gateway %q, number %d", ErrCorrupt, version, h.gateway, h.number)
	}
	return h, nil
}

// checksumAround is the CRC-32C of everything but bytes 12–15, where header and frame
// keep it.
func checksumAround(parts ...[]byte) uint32 {
	sum := crc32.Checksum(parts[0][:12], castagnoli)
	sum = crc32.Update(sum, castagnoli, parts[0][16:])
	for _, part := range parts[1:] {
		sum = crc32.Update(sum, castagnoli, part)
	}
	return sum
}

// frame is one batch in a buffer file.
type frame struct {
	index uint32 // from 0, rising by one
	span  SpanID
	info  BatchInfo
	data  []byte
}

// appendFrameHead encodes all of a frame but its data, which follows as it is.
func appendFrameHead(out []byte, m marker, f *frame) []byte {
	start, info := len(out), &f.info
	size := frameHeadSize + len(info.FencingToken) + len(f.data)
	flags := byte(0)
	if info.HasFencingToken {
		flags |= flagFrameToken
	}
	out = append(out, m[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(size))
	out = binary.BigEndian.AppendUint32(out, 0)
	out = binary.BigEndian.AppendUint32(out, f.index)
	out = append(out, f.span.Topic[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(f.span.Partition))
	out = binary.BigEndian.AppendUint32(out, uint32(info.Offsets))
	out = binary.BigEndian.AppendUint32(out, uint32(info.Records))
	out = binary.BigEndian.AppendUint64(out, uint64(info.MinTimestamp))
	out = binary.BigEndian.AppendUint64(out, uint64(info.MaxTimestamp))
	out = binary.BigEndian.AppendUint64(out, uint64(info.LastTimestamp))
	out = binary.BigEndian.AppendUint64(out, uint64(info.ProducerID))
	out = binary.BigEndian.AppendUint64(out, uint64(info.ExpectedOffset))
	out = binary.BigEndian.AppendUint32(out, info.CRC)
	out = binary.BigEndian.AppendUint32(out, uint32(info.BaseSequence))
	out = binary.BigEndian.AppendUint16(out, uint16(info.ProducerEpoch))
	out = append(out, byte(info.Ack), flags)
	out = binary.BigEndian.AppendUint16(out, uint16(len(info.FencingToken)))
	out = binary.BigEndian.AppendUint16(out, 0)
	out = append(out, info.FencingToken...)
	binary.BigEndian.PutUint32(out[start+12:], checksumAround(out[start:], f.data))
	return out
}

// frameSize is the length that a frame's head gives, or 0 if what lies there is no
// frame of this file.
func frameSize(head []byte, m marker) int64 {
	if marker(head) != m {
		return 0
	}
	size := int64(binary.BigEndian.Uint32(head[8:]))
	if size <= frameHeadSize || size > maxFrame {
		return 0
	}
	return size
}

// parseFrame decodes a frame of which marker and length were checked. Its data lies
// within in.
func parseFrame(in []byte) (frame, bool) {
	if checksumAround(in) != binary.BigEndian.Uint32(in[12:]) {
		return frame{}, false
	}
	flags, tokenSize := in[99], int(binary.BigEndian.Uint16(in[100:]))
	reserved := binary.BigEndian.Uint16(in[102:])
	if flags&^flagFrameToken != 0 || reserved != 0 || frameHeadSize+tokenSize >= len(in) {
		return frame{}, false
	}
	data := in[frameHeadSize+tokenSize:]
	f := frame{
		index: binary.BigEndian.Uint32(in[16:]),
		span:  SpanID{Topic: TopicID(in[20:36]), Partition: int32(binary.BigEndian.Uint32(in[36:]))},
		info: BatchInfo{
			Size:            int32(len(data)),
			Offsets:         int32(binary.BigEndian.Uint32(in[40:])),
			Records:         int32(binary.BigEndian.Uint32(in[44:])),
			MinTimestamp:    int64(binary.BigEndian.Uint64(in[48:])),
			MaxTimestamp:    int64(binary.BigEndian.Uint64(in[56:])),
			LastTimestamp:   int64(binary.BigEndian.Uint64(in[64:])),
			ProducerID:      int64(binary.BigEndian.Uint64(in[72:])),
			ExpectedOffset:  int64(binary.BigEndian.Uint64(in[80:])),
			CRC:             binary.BigEndian.Uint32(in[88:]),
			BaseSequence:    int32(binary.BigEndian.Uint32(in[92:])),
			ProducerEpoch:   int16(binary.BigEndian.Uint16(in[96:])),
			Ack:             Ack(in[98]),
			FencingToken:    string(in[frameHeadSize : frameHeadSize+tokenSize]),
			HasFencingToken: flags&flagFrameToken != 0,
		},
		data: data,
	}
	return f, validateBatch(f.span, f.data, &f.info) == nil
}
