package metadata

import (
	"fmt"
	"unicode/utf8"
)

// The rules that every Table shares, so that a backend cannot read them its own way.

// MaxPageSize is where backends of ours end the page of a Range, in bytes of Key and
// Value, as DynamoDB does. The row that reaches it is still part of the page.
const MaxPageSize = 1 << 20

// Holds tells whether a write may happen where a row with that stamp is stored, or
// none when exists is false.
func (c Condition) Holds(stored Stamp, exists bool) bool {
	switch c.Kind {
	case Always:
		return true
	case Absent:
		return !exists
	case Equal:
		return exists && stored == c.Stamp
	case Below:
		return !exists || stored.Compare(c.Stamp) < 0
	}
	return false
}

func (c Condition) String() string {
	switch c.Kind {
	case Always:
		return "always"
	case Absent:
		return "if absent"
	case Equal:
		return "if equal to " + c.Stamp.String()
	case Below:
		return "if below " + c.Stamp.String()
	}
	return fmt.Sprintf("condition %d", c.Kind)
}

// Validate refuses a condition of unknown kind.
func (c Condition) Validate() error {
	if c.Kind > Below {
		return fmt.Errorf("metadata: unknown %s", c)
	}
	return nil
}

// Validate refuses a key that not every Table can store.
func (k Key) Validate() error {
	if err := validateKeyPart("partition", k.Partition, MaxPartitionSize); err != nil {
		return err
	}
	return validateKeyPart("sort", k.Sort, MaxSortSize)
}

func validateKeyPart(name, s string, limit int) error {
	switch {
	case s == "":
		return fmt.Errorf("metadata: the %s key is empty", name)
	case len(s) > limit:
		return fmt.Errorf("metadata: the %s key has %d bytes, the limit is %d", name, len(s), limit)
	case !utf8.ValidString(s):
		return fmt.Errorf("metadata: the %s key %q is not valid UTF-8", name, s)
	}
	return nil
}

// Size is what counts against MaxRowSize, in bytes.
func (r Row) Size() int { return len(r.Partition) + len(r.Sort) + len(r.Value) }

// Validate refuses a row that not every Table can store; ErrTooLarge for its size.
func (r Row) Validate() error {
	if err := r.Key.Validate(); err != nil {
		return err
	}
	switch {
	case r.Stamp == Stamp{}:
		return fmt.Errorf("metadata: row %s has the zero stamp", r.Key)
	case r.Nonce == 0:
		return fmt.Errorf("metadata: row %s has no nonce", r.Key)
	case r.Size() > MaxRowSize:
		return fmt.Errorf("%w: %s has %d bytes, the limit is %d", ErrTooLarge, r.Key, r.Size(), MaxRowSize)
	}
	return nil
}

// Validate refuses a range that not every Table can answer.
func (r Range) Validate() error {
	if err := validateKeyPart("partition", r.Partition, MaxPartitionSize); err != nil {
		return err
	}
	for _, bound := range []string{r.From, r.To} {
		if bound == "" {
			continue
		}
		if err := validateKeyPart("bounding sort", bound, MaxSortSize+1); err != nil {
			return err
		}
	}
	if r.Limit < 0 {
		return fmt.Errorf("metadata: the range's limit %d is negative", r.Limit)
	}
	return nil
}

// Empty tells whether no key can lie in the range, so that no table need be asked.
func (r Range) Empty() bool { return r.To != "" && r.From >= r.To }
