// Package atomicfile writes host files that appear whole or not at all.
//
// Where the system has it (Linux, most file systems) the data is written to a
// file without a name (O_TMPFILE, open(2)), so that even a killed process
// leaves nothing behind; elsewhere to a hidden temporary file in the same
// folder that is renamed at the end.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// A File is a new file that has no place in the file system until Commit.
type File struct {
	*os.File
	dir, path string // folder, final path
	tmp       string // name of the temporary file, "" while it has none
	done      bool
}

// Create starts a new file that Commit will put at path, in place of a
// regular file that may stand there. A path that names anything but a regular
// file is refused; a symbolic link is followed.
func Create(path string, perm fs.FileMode) (*File, error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	switch fi, err := os.Lstat(path); {
	case err == nil && !fi.Mode().IsRegular():
		return nil, &fs.PathError{Op: "create", Path: path, Err: errors.New("exists and is not a regular file")}
	case err == nil:
		perm = fi.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	f := &File{path: path, dir: filepath.Dir(path)}
	var err error
	if f.File, err = openUnnamed(f.dir, perm); err == nil {
		return f, nil
	}
	err = f.withName(func(tmp string) error {
		var err error
		f.File, err = os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return f, nil
}

// withName calls make with fresh names until one is free, and keeps it.
func (f *File) withName(make func(tmp string) error) error {
	for range 100 {
		tmp := filepath.Join(f.dir, fmt.Sprintf(".%s.%08x.tmp", filepath.Base(f.path), rand.Uint32()))
		err := make(tmp)
		if err == nil {
			f.tmp = tmp
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return fs.ErrExist
}

// Path is where the file will stand.
func (f *File) Path() string { return f.path }

// Commit makes the data durable, puts the file in its place, makes that
// durable too, and closes it. On failure the place is as it was and nothing
// is left behind.
func (f *File) Commit() (err error) {
	defer f.Abort()
	if err := f.Sync(); err != nil {
		return err
	}
	if f.tmp == "" {
		// A link can't replace a file, a rename can.
		err := linkUnnamed(f.File, f.path)
		if errors.Is(err, fs.ErrExist) {
			err = f.withName(func(tmp string) error { return linkUnnamed(f.File, tmp) })
		}
		if err != nil {
			return &fs.PathError{Op: "create", Path: f.path, Err: err}
		}
	}
	if f.tmp != "" {
		if err := os.Rename(f.tmp, f.path); err != nil {
			return err
		}
		f.tmp = ""
	}
	f.done = true
	if err := f.File.Close(); err != nil {
		return err
	}
	return syncDir(f.dir)
}

// Abort closes and removes the file unless it was committed. It may be called
// again.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	f.File.Close()
	if f.tmp != "" {
		os.Remove(f.tmp)
	}
}

// WriteFile is Create, Write and Commit.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := Create(path, perm)
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Commit()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return ignoreUnsupportedSync(d.Sync())
}
