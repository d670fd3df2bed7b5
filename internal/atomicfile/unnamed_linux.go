package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func openUnnamed(dir string, perm fs.FileMode) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(perm.Perm()))
	if err != nil {
		return nil, err
	}
	// Without /proc the file could never be given a name.
	if _, err := os.Stat(procPath(uintptr(fd))); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

func linkUnnamed(f *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, procPath(f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

func procPath(fd uintptr) string { return "/proc/self/fd/" + strconv.Itoa(int(fd)) }

// ignoreUnsupportedSync drops the answer of file systems whose folders can't
// be synced.
func ignoreUnsupportedSync(err error) error {
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		return nil
	}
	return err
}
