package main

import (
	"errors"
	"fmt"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// segmentHeaderSize is where the first batch of a segment lies.
const segmentHeaderSize = 16

// dumpLimits are wide: a dump is there to show what is wrong, also with what is too large.
var dumpLimits = batch.Limits{MaxBatchBytes: maxDump, MaxInflatedBytes: maxDump, MaxRecordBytes: maxDump, MaxRecords: 1 << 24}

// foundBatch is a batch and where it lies, in bytes.
type foundBatch struct {
	header   batch.Header
	data     []byte
	position int64
	// fault says what is wrong with it; empty: nothing.
	fault string
}

// batchScan walks batches that lie back to back.
type batchScan struct {
	data     []byte
	position int64
	// err says why it could not go on, with its place.
	err error
}

func newBatchScan(data []byte, position int64) *batchScan {
	return &batchScan{data: data, position: position}
}

// next returns false at the end, or where err says.
func (s *batchScan) next() (foundBatch, bool) {
	if len(s.data) == 0 || s.err != nil {
		return foundBatch{}, false
	}
	h, err := batch.ParseHeader(s.data)
	if err == nil && h.Size() > len(s.data) {
		err = fmt.Errorf("the batch has %d bytes, and only %d are there", h.Size(), len(s.data))
	}
	if err != nil {
		s.err = fmt.Errorf("position %d: no batch can be read here: %w", s.position, err)
		return foundBatch{}, false
	}
	b := foundBatch{header: h, data: s.data[:h.Size()], position: s.position}
	if _, err := batch.Check(b.data); err != nil {
		b.fault = err.Error()
	}
	s.data, s.position = s.data[h.Size():], s.position+int64(h.Size())
	return b, true
}

// dumpOutput is how things are printed.
type dumpOutput interface {
	segment(d *segments.Directory) error
	span(s segments.Span) error
	batch(b foundBatch) error
	record(h batch.Header, index int, r batch.Record) error
}

// dumper walks what is dumped, prints it, and collects the damage.
type dumper struct {
	out     dumpOutput
	records bool
	// faults are sentences that begin with a place.
	faults []string
	// err is a failure to print.
	err error
}

func (d *dumper) faultf(format string, args ...any) {
	d.faults = append(d.faults, fmt.Sprintf(format, args...))
}

func (d *dumper) print(err error) {
	if d.err == nil {
		d.err = err
	}
}

// scan prints batches back to back.
func (d *dumper) scan(s *batchScan) {
	for b, ok := s.next(); ok && d.err == nil; b, ok = s.next() {
		d.batch(b)
	}
	if s.err != nil {
		d.faultf("%v", s.err)
	}
}

func (d *dumper) batch(b foundBatch) {
	d.print(d.out.batch(b))
	if b.fault != "" {
		d.faultf("position %d: batch of %d bytes: %s", b.position, len(b.data), b.fault)
		return
	}
	if !d.records {
		return
	}
	index := 0
	for r, err := range batch.Records(b.data, dumpLimits) {
		if err != nil {
			d.faultf("position %d: record %d of the batch: %v", b.position, index, err)
			return
		}
		d.print(d.out.record(b.header, index, r))
		index++
	}
}

// segment prints a segment span by span, as its directory has it. Without a directory that can be trusted, the batches are
// found one after the other, and nobody knows whose they are.
func (d *dumper) segment(data []byte, key string) {
	directory, err := segments.ParseDirectory(data)
	if errors.Is(err, segments.ErrVersion) {
		d.faultf("%v: dump it with a newer varve", err)
		return
	}
	if err != nil {
		d.faultf("position %d: %v", directoryPlace(data), err)
		d.salvage(data)
		return
	}
	if key != "" && directory.Key() != key {
		d.faultf("position %d: the directory belongs to %s", directoryPlace(data), directory.Key())
	}
	d.print(d.out.segment(directory))
	merged := metadata.GatewayID(directory.Gateway).IsMerger()
	for _, s := range directory.Spans {
		d.print(d.out.span(s))
		for _, info := range s.Batches {
			b := compare(data, info)
			if merged && b.fault == "" { // its base offset means something
				if err := b.header.CheckPlace(); err != nil {
					b.fault = err.Error()
				}
			}
			d.batch(b)
		}
	}
}

// salvage prints the batches that lie one after the other from the header on. They end where the directory
// begins, or damage does: without a directory nobody can tell.
func (d *dumper) salvage(data []byte) {
	s := newBatchScan(data[min(len(data), segmentHeaderSize):], segmentHeaderSize)
	for b, ok := s.next(); ok && d.err == nil; b, ok = s.next() {
		d.batch(b)
	}
	if s.position > segmentHeaderSize {
		d.faultf("positions %d to %d: batches shown as they were found: only the directory knows whose they are", segmentHeaderSize, s.position)
	}
}

// directoryPlace is where the footer lies, from which a directory is found.
func directoryPlace(data []byte) int {
	const footerSize = 48
	return max(0, len(data)-footerSize)
}

// compare holds a batch against what the directory says of it.
func compare(data []byte, info segments.BatchInfo) foundBatch {
	raw := data[info.Position : info.Position+int64(info.Size)]
	s := newBatchScan(raw, info.Position)
	b, ok := s.next()
	switch {
	case !ok:
		// Nothing of it can be believed but what the directory says.
		b = foundBatch{position: info.Position, data: raw, fault: s.err.Error()}
		b.header.CRC, b.header.Length, b.header.Count = info.CRC, info.Size-12, info.Records
	case b.fault != "":
	case b.header.Size() != len(raw):
		b.fault = fmt.Sprintf("it says %d bytes, the directory %d", b.header.Size(), len(raw))
	case b.header.CRC != info.CRC:
		b.fault = fmt.Sprintf("its CRC is %d, the directory says %d", b.header.CRC, info.CRC)
	}
	return b
}
