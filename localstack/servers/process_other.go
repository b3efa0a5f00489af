//go:build !linux

package servers

import (
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

func attributes(detached bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: detached}
}

// runs says whether the process pid has that command line.
func runs(pid int, command []string) (bool, error) {
	line, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return false, nil // there is no such process
	}
	return strings.TrimSpace(string(line)) == strings.Join(command, " "), err
}

// ending would say that a process is gone for runs but may still hold its port.
func ending(int) (bool, error) { return false, nil }
