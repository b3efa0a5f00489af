//go:build unix

package bolttable

import (
	"os"
	"syscall"
)

// unlock frees bbolt's lock on the file.
func unlock(file *os.File) error {
	return syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
}
