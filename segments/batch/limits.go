package batch

// Limits bound what is accepted and how much memory that may take. A field that is
// zero or negative stands for its default.
type Limits struct {
	MaxBatchBytes    int // a whole batch as it is stored, header included
	MaxInflatedBytes int // the records of one batch after inflating, header not included
	MaxRecordBytes   int // one record as encoded, without the size before it
	MaxRecords       int // records in one batch
}

// DefaultLimits are 4 MiB a batch, 16 MiB inflated, 4 MiB a record and 262,144
// records.
func DefaultLimits() Limits {
	return Limits{
		MaxBatchBytes:    4 << 20,
		MaxInflatedBytes: 16 << 20,
		MaxRecordBytes:   4 << 20,
		MaxRecords:       1 << 18,
	}
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	if l.MaxBatchBytes > 0 {
		d.MaxBatchBytes = l.MaxBatchBytes
	}
	if l.MaxInflatedBytes > 0 {
		d.MaxInflatedBytes = l.MaxInflatedBytes
	}
	if l.MaxRecordBytes > 0 {
		d.MaxRecordBytes = l.MaxRecordBytes
	}
	if l.MaxRecords > 0 {
		d.MaxRecords = l.MaxRecords
	}
	return d
}
