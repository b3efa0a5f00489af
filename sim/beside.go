package sim

import (
	"log/slog"
	"time"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/internal/upkeep"
)

// upkeep is what runs beside each gateway, at paces of seconds.
func (o Options) upkeep(log *slog.Logger) upkeep.Config {
	c := upkeep.Config{Log: log,
		Collecting: compactor.CollectConfig{Grace: o.Grace, Interval: 2 * time.Second, MaxShare: 1},
		Retention:  compactor.RetentionConfig{Pace: time.Second, SizePace: time.Second},
		Removal:    compactor.RemovalConfig{Delay: 2 * time.Second, Retry: time.Second}}
	if !o.Upkeep { // none of it has its time in so short a run
		return upkeep.Config{Log: log}
	}
	c.Merging = &compactor.Config{TargetBytes: 64 << 10, Age: o.MergeAge, AgainAfter: 2 * o.MergeAge, BytesPerSecond: -1, KeyTailBytes: -1}
	return c
}
