//go:build !unix

package bolttable

import "os"

// unlock leaves bbolt's lock on the file to the end of the process.
func unlock(*os.File) error { return nil }
