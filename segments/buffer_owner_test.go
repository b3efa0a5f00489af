package segments_test

import (
	"errors"
	"testing"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// TestClaim checks that a buffer folder stays with its cluster, through crashes at
// any moment of the first claim.
func TestClaim(t *testing.T) {
	for kept := range 8 {
		disk := faultfs.New()
		d, err := segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{})
		if err != nil {
			t.Fatal(err)
		}
		err = d.Claim("c1")
		if err != nil {
			t.Fatal(err)
		}
		disk.Crash(func(n int) int { return min(n, kept) })
		if d, err = segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{}); err != nil {
			t.Fatal(err)
		}
		if err := d.Claim("c2"); !errors.Is(err, segments.ErrOtherCluster) {
			t.Fatalf("another cluster took the folder: %v", err)
		}
		if err := d.Claim("c1"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClaimTorn checks that a claim which a crash cut short is made again.
func TestClaimTorn(t *testing.T) {
	disk := faultfs.New()
	d, err := segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Put("/buffer/cluster-id", nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Claim("c2"); err != nil {
		t.Fatal(err)
	}
	if err := d.Claim("c1"); !errors.Is(err, segments.ErrOtherCluster) {
		t.Fatalf("the second claim was not kept: %v", err)
	}
}

// TestRegister checks that an id outlives a crash without any buffer file.
func TestRegister(t *testing.T) {
	disk := faultfs.New()
	d, err := segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Register("g1"); err != nil {
		t.Fatal(err)
	}
	disk.Crash(nil)
	if d, err = segments.OpenBufferDir(disk, "/buffer", segments.BufferConfig{}); err != nil {
		t.Fatal(err)
	}
	ids, err := d.Gateways()
	if err != nil || len(ids) != 1 || ids[0] != "g1" {
		t.Fatalf("after a crash: %v, %v", ids, err)
	}
}
