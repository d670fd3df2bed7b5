//go:build !linux

package convert

import (
	"io/fs"
	"os"
	"syscall"
)

const errNoSpace = syscall.ENOSPC

func freeSpace(*os.File) (int64, bool) { return 0, false }

func umask() fs.FileMode { return 0o022 }

func newFlusher(f *os.File) *os.File { return f }
