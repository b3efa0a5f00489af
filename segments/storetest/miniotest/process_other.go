//go:build !linux

package miniotest

import "os/exec"

// dieWithParent is Linux only: elsewhere the server outlives a test binary that is
// killed.
func dieWithParent(*exec.Cmd) {}
