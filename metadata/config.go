package metadata

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Config is a topic's configuration with every default filled in.
type Config struct {
	// RetentionMillis is how long records are kept after their timestamp; -1: for ever.
	RetentionMillis int64
	// RetentionBytes is how many bytes a partition keeps; -1: all.
	RetentionBytes int64
	// Cleanup is CleanupDelete, CleanupCompact or CleanupBoth.
	Cleanup string
	// DeleteRetentionMillis is how long key compaction keeps a record without a value after it
	// has removed what that record deletes.
	DeleteRetentionMillis int64
	// CompactionLagMillis is how old a record is, by its timestamp, before key compaction
	// touches it or what follows it.
	CompactionLagMillis int64
	// DirtyRatio is the least share of a partition's bytes that key compaction has not looked
	// at yet for it to begin; from 0 to 1.
	DirtyRatio float64
	// AppendTime dates records by the gateway's clock, not the producer's.
	AppendTime bool
	// MaxMessageBytes bounds a record batch as it is sent, header included.
	MaxMessageBytes int32
	// FutureMaxMillis is how far ahead of the gateway's clock a producer may date a record.
	FutureMaxMillis int64
}

// Values of Config.Cleanup.
const (
	CleanupDelete  = "delete"
	CleanupCompact = "compact"
	CleanupBoth    = "compact,delete"
)

// Compacts says whether only the last record of each key is kept.
func (c Config) Compacts() bool { return c.Cleanup != CleanupDelete }

// MaxMaxMessageBytes is the highest max.message.bytes: a batch must fit a segment.
const MaxMaxMessageBytes = 8 << 20

// minMaxMessageBytes holds the header of a batch (61 bytes) and a small record.
const minMaxMessageBytes = 128

// DefaultConfig is that of a topic with nothing set.
func DefaultConfig() Config {
	return Config{RetentionMillis: -1, RetentionBytes: -1, Cleanup: CleanupDelete,
		DeleteRetentionMillis: 86_400_000, DirtyRatio: 0.5, MaxMessageBytes: 1<<20 + 12, FutureMaxMillis: 3_600_000}
}

// ConfigEntry is one setting, for people.
type ConfigEntry struct {
	Name      string
	Value     string
	IsDefault bool // the value is the default one
	Doc       string
}

// setting is one key: how its text is read into a Config and written again.
type setting struct {
	name  string
	alias string // Kafka's name for it, when that is another
	doc   string
	read  func(*Config, string) error
	write func(*Config) string
}

var settings = []setting{
	{
		name: "cleanup.policy",
		doc:  "what retention does: delete, compact (keep the last record of each key) or compact,delete",
		read: func(c *Config, s string) error {
			switch s {
			case CleanupDelete, CleanupCompact, CleanupBoth:
				c.Cleanup = s
			case "delete,compact":
				c.Cleanup = CleanupBoth
			default:
				return errors.New("is not delete, compact or compact,delete")
			}
			return nil
		},
		write: func(c *Config) string { return c.Cleanup },
	},
	{
		name: "delete.retention.ms",
		doc:  "how long key compaction keeps a record without a value, which deletes its key, in milliseconds",
		read: func(c *Config, s string) (err error) {
			c.DeleteRetentionMillis, err = readNumber(s, 0, math.MaxInt64)
			return err
		},
		write: func(c *Config) string { return strconv.FormatInt(c.DeleteRetentionMillis, 10) },
	},
	{
		name: "max.message.bytes",
		doc:  "largest record batch as it is sent, in bytes",
		read: func(c *Config, s string) error {
			v, err := readNumber(s, minMaxMessageBytes, MaxMaxMessageBytes)
			c.MaxMessageBytes = int32(v)
			return err
		},
		write: func(c *Config) string { return strconv.Itoa(int(c.MaxMessageBytes)) },
	},
	{
		name: "min.cleanable.dirty.ratio",
		doc:  "share of a partition's bytes that is new before key compaction begins, from 0 to 1",
		read: func(c *Config, s string) error {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil || !(v >= 0 && v <= 1) {
				return errors.New("is not a number from 0 to 1")
			}
			c.DirtyRatio = v
			return nil
		},
		write: func(c *Config) string { return strconv.FormatFloat(c.DirtyRatio, 'g', -1, 64) },
	},
	{
		name: "min.compaction.lag.ms",
		doc:  "how old a record is before key compaction touches it or what follows it, in milliseconds",
		read: func(c *Config, s string) (err error) {
			c.CompactionLagMillis, err = readNumber(s, 0, math.MaxInt64)
			return err
		},
		write: func(c *Config) string { return strconv.FormatInt(c.CompactionLagMillis, 10) },
	},
	{
		name: "retention.bytes",
		doc:  "bytes that a partition keeps; -1: all",
		read: func(c *Config, s string) (err error) {
			c.RetentionBytes, err = readNumber(s, -1, math.MaxInt64)
			return err
		},
		write: func(c *Config) string { return strconv.FormatInt(c.RetentionBytes, 10) },
	},
	{
		name: "retention.ms",
		doc:  "how long records are kept after their timestamp, in milliseconds; -1: for ever",
		read: func(c *Config, s string) (err error) {
			c.RetentionMillis, err = readNumber(s, -1, math.MaxInt64)
			return err
		},
		write: func(c *Config) string { return strconv.FormatInt(c.RetentionMillis, 10) },
	},
	{
		name:  "timestamp.after.max.ms",
		alias: "message.timestamp.after.max.ms",
		doc:   "how far ahead of the gateway's clock a record may be dated, in milliseconds",
		read: func(c *Config, s string) (err error) {
			c.FutureMaxMillis, err = readNumber(s, 0, math.MaxInt64)
			return err
		},
		write: func(c *Config) string { return strconv.FormatInt(c.FutureMaxMillis, 10) },
	},
	{
		name:  "timestamp.type",
		alias: "message.timestamp.type",
		doc:   "who dates records: create (the producer) or append (the gateway)",
		read: func(c *Config, s string) error {
			switch s {
			case "create", "CreateTime":
				c.AppendTime = false
			case "append", "LogAppendTime":
				c.AppendTime = true
			default:
				return errors.New("is not create or append")
			}
			return nil
		},
		write: func(c *Config) string {
			if c.AppendTime {
				return "append"
			}
			return "create"
		},
	},
}

func readNumber(s string, least, most int64) (int64, error) {
	v, err := strconv.ParseInt(s, 10, 64)
	switch {
	case err != nil:
		return 0, errors.New("is not a whole number")
	case v < least:
		return 0, fmt.Errorf("is below %d", least)
	case v > most:
		return 0, fmt.Errorf("is above %d", most)
	}
	return v, nil
}

func findSetting(name string) *setting {
	for i := range settings {
		if s := &settings[i]; name == s.name || name == s.alias && s.alias != "" {
			return s
		}
	}
	return nil
}

// ConfigNames lists the keys of a topic's configuration.
func ConfigNames() []string {
	names := make([]string, len(settings))
	for i := range settings {
		names[i] = settings[i].name
	}
	return names
}

func unknownSetting(name string) error {
	return fmt.Errorf("%q is not a setting of a topic; there are %s",
		strings.ToValidUTF8(name, "?"), strings.Join(ConfigNames(), ", "))
}

// ParseConfig reads a topic's settings, by their names here or Kafka's. The error
// wraps ErrInvalid and lists every fault.
func ParseConfig(set map[string]string) (Config, error) {
	c := DefaultConfig()
	_, err := canonicalConfig(set, &c)
	return c, err
}

// canonicalConfig reads settings into c and returns them under their names here
// with their values as c writes them.
func canonicalConfig(set map[string]string, c *Config) (map[string]string, error) {
	out := make(map[string]string, len(set))
	var faults []string
	for _, name := range slices.Sorted(maps.Keys(set)) {
		s := findSetting(name)
		if s == nil {
			faults = append(faults, unknownSetting(name).Error())
			continue
		}
		if err := s.read(c, set[name]); err != nil {
			faults = append(faults, fmt.Sprintf("%s: %q %s", name, strings.ToValidUTF8(set[name], "?"), err))
			continue
		}
		value := s.write(c)
		if other, twice := out[s.name]; twice && other != value {
			faults = append(faults, fmt.Sprintf("%s and %s are one setting and differ", s.name, s.alias))
			continue
		}
		out[s.name] = value
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("%w: topic configuration: %s", ErrInvalid, strings.Join(faults, "; "))
	}
	return out, nil
}

// Entries lists every setting with its value, by name.
func (c Config) Entries() []ConfigEntry {
	defaults := DefaultConfig()
	list := make([]ConfigEntry, len(settings))
	for i := range settings {
		s := &settings[i]
		list[i] = ConfigEntry{Name: s.name, Value: s.write(&c), Doc: s.doc}
		list[i].IsDefault = list[i].Value == s.write(&defaults)
	}
	return list
}
