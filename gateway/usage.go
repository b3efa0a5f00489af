package gateway

import (
	"os"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

// Usage says what the gateway has used since its start.
func (m *Meters) Usage() *varvev1.UsageResponse {
	cpu, peak := processTimes()
	resident, high := residentMemory()
	heap := heapBytes()
	if high == 0 {
		high = peak
	}
	if resident == 0 {
		resident = heap
	}
	put, get := &m.store.put, &m.store.get
	commits, checkpoints := &m.table[metadata.OpPut][rowCommit], &m.table[metadata.OpPut][rowCheckpoint]
	swept := &m.table[metadata.OpDelete][rowCheckpoint]
	return &varvev1.UsageResponse{
		CpuSeconds: cpu,
		ObjectPuts: put.calls.Load(), ObjectPutBytes: put.bytes.Load(),
		ObjectGets: get.calls.Load(), ObjectGetBytes: get.bytes.Load(),
		ObjectLists: m.store.list.calls.Load(), ObjectDeletes: m.store.delete.calls.Load(),
		TableReads:   m.tableCalls(metadata.OpGet) + m.tableCalls(metadata.OpRange),
		TableWrites:  m.tableCalls(metadata.OpPut) + m.tableCalls(metadata.OpDelete),
		CommitWrites: commits.calls.Load(), CommitBytes: commits.bytes.Load(),
		CheckpointWrites: checkpoints.calls.Load() + swept.calls.Load(), CheckpointBytes: checkpoints.bytes.Load(),
		BeatWrites:      m.table[metadata.OpPut][rowBeat].calls.Load(),
		BeatReads:       m.table[metadata.OpGet][rowBeat].calls.Load() + m.table[metadata.OpRange][rowBeat].calls.Load(),
		CommitUnits:     commits.units.Load() / bill.Part,
		CheckpointUnits: (checkpoints.units.Load() + swept.units.Load()) / bill.Part,
		Flushes:         m.flushes.Load(), FlushedSpans: m.flushedSpans.Load(), Cycles: m.cycles.Load(),
		AppendedBytes: m.appendedBytes.Load(), AppendedRecords: m.appendedRecords.Load(),
		ResidentBytes: resident, PeakResidentBytes: max(high, resident), HeapBytes: heap,
	}
}

func (m *Meters) tableCalls(op metadata.Op) (n uint64) {
	for k := range m.table[op] {
		n += m.table[op][k].calls.Load()
	}
	return n
}

// processTimes returns the CPU seconds of the process, user and system, and the
// peak of its resident memory in bytes; zeros where the system does not tell.
func processTimes() (seconds float64, peak uint64) {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0, 0
	}
	spent := time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
	return spent.Seconds(), uint64(usage.Maxrss) * maxrssUnit
}

// residentMemory reads what Linux tells of the process, in bytes; zeros elsewhere.
func residentMemory() (now, peak uint64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0
	}
	return statusBytes(string(status), "VmRSS:"), statusBytes(string(status), "VmHWM:")
}

// statusBytes finds a field such as "VmRSS:     1234 kB".
func statusBytes(status, name string) uint64 {
	for line := range strings.Lines(status) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == name {
			kb, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}

// heapBytes is the memory of live and dead objects on the heap, without stopping the world.
func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
