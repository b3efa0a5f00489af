package segments

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncData uses os.File.Sync, which asks the drive itself (F_FULLFSYNC); fsync alone
// does not here.
func syncData(f *os.File) error { return f.Sync() }

func freeBytes(path string) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return int64(stat.Bavail) * int64(stat.Bsize), nil
}
