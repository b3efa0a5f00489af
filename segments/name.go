package segments

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Suffix ends the key of every segment.
const Suffix = ".seg"

// maxID is the longest cluster or gateway id, in bytes.
const maxID = 64

// numberDigits holds every uint64, so that keys sort as their numbers do.
const numberDigits = 20

// ClusterID names a cluster: 1 to 64 of [a-zA-Z0-9-].
type ClusterID string

// GatewayID names a gateway from its start to its end, and with it its journal and
// its segments: 1 to 64 of [a-zA-Z0-9-].
type GatewayID string

// Validate returns an error that says what is wrong with the id.
func (id ClusterID) Validate() error { return validateID("cluster", string(id)) }

// Validate returns an error that says what is wrong with the id.
func (id GatewayID) Validate() error { return validateID("gateway", string(id)) }

func validateID(what, id string) error {
	if len(id) == 0 || len(id) > maxID {
		return fmt.Errorf("segments: %s id %.80q has %d bytes: must have 1 to %d", what, id, len(id), maxID)
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("segments: %s id %q: byte %d must be one of a-z, A-Z, 0-9 or -", what, id, i)
		}
	}
	return nil
}

// TopicID is a topic's identity, which its name is not.
type TopicID [16]byte

// String returns 32 lower-case hex digits.
func (id TopicID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText returns what String does.
func (id TopicID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText accepts what [ParseTopicID] does.
func (id *TopicID) UnmarshalText(text []byte) error {
	parsed, err := ParseTopicID(string(text))
	if err == nil {
		*id = parsed
	}
	return err
}

// ParseTopicID is the inverse of [TopicID.String]; upper-case digits are refused, so
// that an id has one text only.
func ParseTopicID(text string) (TopicID, error) {
	var id TopicID
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(id) || strings.ToLower(text) != text {
		return id, fmt.Errorf("segments: topic id %.80q: must be 32 lower-case hex digits", text)
	}
	return TopicID(raw), nil
}

// SpanID names a partition: within one segment it has at most one span.
type SpanID struct {
	Topic     TopicID
	Partition int32 // from 0
}

// String returns "<topic id>/<partition>".
func (id SpanID) String() string {
	return id.Topic.String() + "/" + strconv.FormatInt(int64(id.Partition), 10)
}

// Compare orders ids by topic, then partition: the order of spans in a segment.
func (id SpanID) Compare(other SpanID) int {
	if c := bytes.Compare(id.Topic[:], other.Topic[:]); c != 0 {
		return c
	}
	return int(int64(id.Partition) - int64(other.Partition))
}

// ObjectKey is the key of a segment: "<cluster>/<gateway>/<number as 20 digits>.seg".
// Keys of one gateway sort by number. The ids must be valid.
func ObjectKey(cluster ClusterID, gateway GatewayID, number uint64) string {
	return fmt.Sprintf("%s/%s/%0*d%s", cluster, gateway, numberDigits, number, Suffix)
}

// ParseObjectKey is the inverse of [ObjectKey]. It refuses everything that ObjectKey
// does not return for valid ids and a number from 1.
func ParseObjectKey(key string) (ClusterID, GatewayID, uint64, error) {
	fail := func(why string) (ClusterID, GatewayID, uint64, error) {
		return "", "", 0, fmt.Errorf("segments: %.200q is not the key of a segment: %s", key, why)
	}
	rest, found := strings.CutSuffix(key, Suffix)
	if !found {
		return fail("it does not end in " + Suffix)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return fail("it must be <cluster id>/<gateway id>/<number>" + Suffix)
	}
	cluster, gateway := ClusterID(parts[0]), GatewayID(parts[1])
	if err := cluster.Validate(); err != nil {
		return fail(err.Error())
	}
	if err := gateway.Validate(); err != nil {
		return fail(err.Error())
	}
	// ParseUint takes digits only, so the length leaves one text for each number.
	number, err := strconv.ParseUint(parts[2], 10, 64)
	if err != nil || len(parts[2]) != numberDigits || number == 0 {
		return fail(fmt.Sprintf("the number must be %d digits, from 1", numberDigits))
	}
	return cluster, gateway, number, nil
}
