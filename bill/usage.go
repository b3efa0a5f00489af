package bill

// Unit is one thing that is counted.
type Unit uint8

// Requests, and units of the table, are counted in millionths (see Part): those who share one have
// a part of it each. Bytes and records are counted whole.
const (
	FlushPuts       Unit = iota // PUTs of segments with what producers sent
	MergePuts                   // PUTs of segments that merges wrote
	OtherPuts                   // PUTs of other objects
	Lists                       // LISTs
	ReadGets                    // GETs for readers and lookups
	MergeGets                   // GETs of merges
	OtherGets                   // GETs of which nobody said what for
	Deletes                     // DELETEs
	BytesPut                    // bytes of objects written
	BytesGot                    // bytes of objects read
	CommitUnits                 // write units of journal entries
	TrimUnits                   // write units of removing them
	CheckpointUnits             // write units of partitions' rows
	MergeUnits                  // write units of partitions' rows that merges wrote
	BeatUnits                   // write units of gateways' rows
	OtherWriteUnits             // other write units
	IndexReadUnits              // read units of partitions' rows
	MemberReadUnits             // read units of gateways' rows
	OtherReadUnits              // other read units: journals, topics
	AppendedBytes               // bytes of record batches that were accepted
	AppendedRecords             // records in them
	Units                       // how many there are
)

// Part is how many parts a request or a unit has.
const Part = 1_000_000

// Usage is how much was used of each.
type Usage [Units]uint64

// Add adds another usage.
func (u *Usage) Add(o *Usage) {
	for i := range u {
		u[i] += o[i]
	}
}

// Whole is a count of requests or units as a number.
func (u *Usage) Whole(unit Unit) float64 { return float64(u[unit]) / Part }

// of sums counts of requests or units.
func (u *Usage) of(units ...Unit) (n float64) {
	for _, unit := range units {
		n += u.Whole(unit)
	}
	return n
}

// Puts are PUTs of all kinds, and LISTs, which are billed as PUTs.
func (u *Usage) Puts() float64 { return u.of(FlushPuts, MergePuts, OtherPuts, Lists) }

// Gets are GETs of all kinds.
func (u *Usage) Gets() float64 { return u.of(ReadGets, MergeGets, OtherGets) }

// WriteUnits are the table's write units, of started KiB.
func (u *Usage) WriteUnits() float64 {
	return u.of(CommitUnits, TrimUnits, CheckpointUnits, MergeUnits, BeatUnits, OtherWriteUnits)
}

// ReadUnits are the table's read units, of started 4 KiB read strongly; others cost half.
func (u *Usage) ReadUnits() float64 { return u.of(IndexReadUnits, MemberReadUnits, OtherReadUnits) }
