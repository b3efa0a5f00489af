package bill

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// Prices is what a cloud asks for, in Currency. What is not set costs nothing.
type Prices struct {
	// Currency is a name to print, AsOf and Source say where the figures come from.
	Currency string `yaml:"currency"`
	AsOf     string `yaml:"as_of"`
	Source   string `yaml:"source"`
	Bucket   struct {
		// PutsPer1000 are PUT and LIST requests, GetsPer1000 GET, DeletesPer1000 DELETE.
		PutsPer1000    float64 `yaml:"puts_and_lists_per_1000"`
		GetsPer1000    float64 `yaml:"gets_per_1000"`
		DeletesPer1000 float64 `yaml:"deletes_per_1000"`
		// GiBMonth is for a GiB that is stored for a month, ReadGiB for one that leaves the bucket.
		GiBMonth float64 `yaml:"stored_per_gib_month"`
		ReadGiB  float64 `yaml:"read_per_gib"`
	} `yaml:"bucket"`
	Table struct {
		// Units are of started KiB written, and of started 4 KiB read strongly.
		WritesPerMillion float64 `yaml:"write_units_per_million"`
		ReadsPerMillion  float64 `yaml:"read_units_per_million"`
	} `yaml:"table"`
}

//go:embed prices.yaml
var defaultPrices []byte

// DefaultPricesText is the default list as a file, with comments.
func DefaultPricesText() []byte { return bytes.Clone(defaultPrices) }

// DefaultPrices is that of AWS in us-east-1.
func DefaultPrices() Prices {
	p, err := ParsePrices(defaultPrices)
	if err != nil {
		panic(err) // it is part of the program
	}
	return p
}

// ParsePrices reads a list, YAML or JSON. It must name every price: what was forgotten would be free.
func ParsePrices(text []byte) (p Prices, err error) {
	var has map[string]any
	if err := yaml.Unmarshal(text, &has); err != nil {
		return p, err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
		return p, errors.New("it is empty")
	} else if err != nil {
		return p, err
	}
	var faults []error
	for _, price := range p.list() {
		section, _ := has[price.section].(map[string]any)
		switch _, there := section[price.name]; {
		case !there:
			faults = append(faults, fmt.Errorf("%s.%s is missing; 0 is for what costs nothing", price.section, price.name))
		case !(price.value >= 0 && price.value < 1e9):
			faults = append(faults, fmt.Errorf("%s.%s is %v: no price", price.section, price.name, price.value))
		}
	}
	if p.Currency == "" {
		faults = append(faults, errors.New("currency is missing"))
	}
	return p, errors.Join(faults...)
}

type price struct {
	section, name string
	value         float64
}

func (p *Prices) list() []price {
	return []price{
		{"bucket", "puts_and_lists_per_1000", p.Bucket.PutsPer1000}, {"bucket", "gets_per_1000", p.Bucket.GetsPer1000},
		{"bucket", "deletes_per_1000", p.Bucket.DeletesPer1000}, {"bucket", "stored_per_gib_month", p.Bucket.GiBMonth},
		{"bucket", "read_per_gib", p.Bucket.ReadGiB},
		{"table", "write_units_per_million", p.Table.WritesPerMillion}, {"table", "read_units_per_million", p.Table.ReadsPerMillion},
	}
}

// GiB is what prices and figures "a GiB" are for, in bytes.
const GiB = 1 << 30

// Item is one line of a bill.
type Item struct {
	Name string
	// Used is how many requests, units or bytes; Money what they cost.
	Used, Money float64
	// Bytes says that Used is in bytes.
	Bytes bool
}

// Cost is what a usage comes to.
type Cost struct {
	Items []Item
	Total float64
	// Appended is in bytes.
	Appended float64
}

// Of turns a usage into money, with an item for each thing that is billed, also those that were
// not used. What is stored is apart: see StoredMonth.
func (p *Prices) Of(u *Usage) Cost {
	c := Cost{Appended: float64(u[AppendedBytes])}
	add := func(name string, used, each float64, bytes bool) {
		c.Items = append(c.Items, Item{Name: name, Used: used, Money: used * each, Bytes: bytes})
		c.Total += used * each
	}
	put, get, del := p.Bucket.PutsPer1000/1e3, p.Bucket.GetsPer1000/1e3, p.Bucket.DeletesPer1000/1e3
	write, read := p.Table.WritesPerMillion/1e6, p.Table.ReadsPerMillion/1e6
	add(ItemFlushes, u.Whole(FlushPuts), put, false)
	add(ItemMerges, u.Whole(MergePuts), put, false)
	add(ItemOtherPuts, u.of(OtherPuts, Lists), put, false)
	add(ItemReads, u.Whole(ReadGets), get, false)
	add(ItemMergeReads, u.Whole(MergeGets), get, false)
	add(ItemOtherGets, u.Whole(OtherGets), get, false)
	add(ItemDeletes, u.Whole(Deletes), del, false)
	add(ItemBytesRead, float64(u[BytesGot]), p.Bucket.ReadGiB/GiB, true)
	add(ItemCommits, u.Whole(CommitUnits), write, false)
	add(ItemTrims, u.Whole(TrimUnits), write, false)
	add(ItemCheckpoints, u.Whole(CheckpointUnits), write, false)
	add(ItemMergeWrites, u.Whole(MergeUnits), write, false)
	add(ItemBeats, u.Whole(BeatUnits), write, false)
	add(ItemOtherWrites, u.Whole(OtherWriteUnits), write, false)
	add(ItemIndexReads, u.Whole(IndexReadUnits), read, false)
	add(ItemMemberReads, u.Whole(MemberReadUnits), read, false)
	add(ItemOtherReads, u.Whole(OtherReadUnits), read, false)
	return c
}

// The items of a bill.
const (
	ItemFlushes     = "PUTs of flushes"
	ItemMerges      = "PUTs of merges"
	ItemOtherPuts   = "other PUTs and LISTs"
	ItemReads       = "GETs for readers"
	ItemMergeReads  = "GETs of merges"
	ItemOtherGets   = "other GETs"
	ItemDeletes     = "DELETEs"
	ItemBytesRead   = "bytes out of the bucket"
	ItemCommits     = "write units of commits"
	ItemTrims       = "write units of journal trims"
	ItemCheckpoints = "write units of checkpoints"
	ItemMergeWrites = "write units of merges"
	ItemBeats       = "write units of heartbeats"
	ItemOtherWrites = "other write units"
	ItemIndexReads  = "read units of the index"
	ItemMemberReads = "read units of heartbeats"
	ItemOtherReads  = "other read units"
)

// PerGiB is money for a GiB that was appended; false when nothing was.
func (c *Cost) PerGiB() (float64, bool) {
	if c.Appended == 0 {
		return 0, false
	}
	return c.Total / c.Appended * GiB, true
}

// StoredMonth is what so many bytes cost a month.
func (p *Prices) StoredMonth(bytes int64) float64 { return float64(bytes) / GiB * p.Bucket.GiBMonth }

// Driver is the item that costs most; false when nothing costs anything.
func (c *Cost) Driver() (Item, bool) {
	var most Item
	for _, item := range c.Items {
		if item.Money > most.Money {
			most = item
		}
	}
	return most, most.Money > 0
}
