package convert

import (
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const errNoSpace = unix.ENOSPC

// freeSpace is what an ordinary user may still write where f is, in bytes.
func freeSpace(f *os.File) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * st.Bsize, true
}

// umask reads the process's mask, which can only be read by setting it.
var umask = sync.OnceValue(func() fs.FileMode {
	mask := unix.Umask(0o077)
	unix.Umask(mask)
	return fs.FileMode(mask) & fs.ModePerm
})

// flushEvery is how much is written before the kernel is asked to start
// putting it on the disk, so that the sync at the end finds little left.
const flushEvery = 16 << 20

// A flusher passes writes on to a file and starts their write-back early.
type flusher struct {
	*os.File
	from, to int64 // covers what is not yet flushed
	pending  int64 // bytes of it
}

func newFlusher(f *os.File) *flusher { return &flusher{File: f} }

func (f *flusher) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if f.pending == 0 {
		f.from = off
	}
	f.from, f.to = min(f.from, off), max(f.to, off+int64(n))
	if f.pending += int64(n); f.pending >= flushEvery {
		// A hint: a file system that does not know it loses nothing.
		_ = unix.SyncFileRange(int(f.Fd()), f.from, f.to-f.from, unix.SYNC_FILE_RANGE_WRITE)
		f.pending = 0
	}
	return n, err
}
