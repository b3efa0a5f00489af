package servers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func attributes(detached bool) *syscall.SysProcAttr {
	if detached {
		return &syscall.SysProcAttr{Setsid: true}
	}
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// runs says whether the process pid has that command line and has not ended.
func runs(pid int, command []string) (bool, error) {
	line, err := readProc(pid, "cmdline")
	if err != nil || line == "" {
		return false, err
	}
	return line == strings.Join(command, "\x00")+"\x00", nil
}

// ending says whether the process pid lost its command line already but may still
// hold its port: the kernel takes memory away first and closes files later.
func ending(pid int) (bool, error) {
	line, err := readProc(pid, "cmdline")
	if err != nil || line != "" {
		return false, err
	}
	stat, err := readProc(pid, "stat")
	if err != nil || stat == "" {
		return false, err
	}
	// proc_pid_stat(5): after the name in parentheses come state (field 3), flags
	// (9) and the number of threads (20).
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 18 {
		return false, fmt.Errorf("/proc/%d/stat: %q ends early", pid, stat)
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return false, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	const exiting = 0x4 // PF_EXITING; kernel threads have no command line either
	dead := fields[0] == "Z" || fields[0] == "X"
	return flags&exiting != 0 && !(dead && fields[17] == "1"), nil
}

// readProc returns "" for a process that does not exist.
func readProc(pid int, name string) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return "", nil
	}
	return string(text), err
}
