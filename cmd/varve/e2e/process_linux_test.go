package e2e

import "syscall"

// endsWithUs has a process end with the tests, also when these are killed.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
