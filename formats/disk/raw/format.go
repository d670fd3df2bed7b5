// Package raw reads and writes raw disks: the bytes of the disk, and nothing
// else. Holes of a sparse file are found with SEEK_HOLE and SEEK_DATA
// (lseek(2), POSIX.1-2024) and made by not writing.
package raw

// Name is the name of the format in errors and on the command line.
const Name = "raw"

// The two whence values of lseek(2) for sparse files, as Linux, FreeBSD and
// illumos number them.
const (
	seekData = 3
	seekHole = 4
)
