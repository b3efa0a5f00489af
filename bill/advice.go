package bill

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
)

// Setting is how the gateways are set up, as far as it drives costs.
type Setting struct {
	FlushInterval time.Duration
	SegmentBytes  int64
}

// leastCalls is how many requests or units drive a cost where nothing is appended: fewer are those of a topic that is
// hardly used, and of whoever looked at it.
const leastCalls = 20

// Advice says in a sentence or two what costs most, and what would make it less. Empty: nothing
// costs anything, or hardly anything was done.
func (c *Cost) Advice(u *Usage, s Setting) string {
	most, ok := c.Driver()
	if !ok || c.Appended == 0 && !most.Bytes && most.Used < leastCalls {
		return ""
	}
	text := fmt.Sprintf("%.0f %% are %s", 100*most.Money/c.Total, most.Name)
	if c.Appended >= GiB/1024 && !most.Bytes {
		text += fmt.Sprintf(", %.0f a GiB appended", most.Used/c.Appended*GiB)
	}
	if hint := hint(most.Name, u, s); hint != "" {
		text += ": " + hint
	}
	return text + "."
}

// hint is what would make an item cost less.
func hint(name string, u *Usage, s Setting) string {
	switch name {
	case ItemFlushes:
		size := float64(u[AppendedBytes]) / max(1, u.Whole(FlushPuts))
		if size >= 0.8*float64(s.SegmentBytes) {
			return fmt.Sprintf("segments are full, at %s each; a larger --segment-bytes would make fewer", bytesText(size))
		}
		return fmt.Sprintf("its share of a segment is %s for each PUT it pays, where %s fit; a longer --flush-interval (%s now), or the same load on fewer gateways, would make fewer",
			bytesText(size), bytesText(float64(s.SegmentBytes)), s.FlushInterval)
	case ItemMerges, ItemMergeReads, ItemMergeWrites:
		return "merging writes again what small segments hold, which makes readers' GETs fewer; fuller segments (a longer --flush-interval) need less of it"
	case ItemReads:
		return fmt.Sprintf("readers of old records take %s a GET; larger segments, or readers that keep up and are served from memory, need fewer",
			bytesText(float64(u[BytesGot])/max(1, u.Gets())))
	case ItemBytesRead:
		return "gateways in the bucket's own region read for nothing on most clouds"
	case ItemCommits, ItemTrims:
		return fmt.Sprintf("a commit is paid by its size, which grows with the partitions and batches in it, and removing it later costs as much; "+
			"larger batches, fewer partitions an append, or a longer --flush-interval (%s now) make less of both", s.FlushInterval)
	case ItemCheckpoints:
		return "each partition that is appended to has its rows written again now and then; fewer partitions for the same records need less"
	case ItemBeats, ItemMemberReads:
		return "gateways write and read heartbeats also while idle; a longer --lease-time, or fewer gateways, need less"
	case ItemIndexReads:
		return "lookups and reads of many partitions need more of the index than fits the gateways' memory"
	}
	return ""
}

func bytesText(n float64) string { return humanize.IBytes(uint64(max(0, n))) }
