//go:build !linux

package e2e

import "syscall"

// endsWithUs would have a process end with the tests when these are killed.
func endsWithUs() *syscall.SysProcAttr { return nil }
