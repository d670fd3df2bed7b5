//go:build unix

package main

import (
	"io/fs"
	"syscall"
)

// allocated is what a host file occupies on disk, in bytes.
func allocated(fi fs.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int64(st.Blocks) * 512
	}
	return fi.Size()
}
