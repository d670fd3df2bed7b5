package ovf

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// A dir is a directory of a package in a folder: it shows members only.
type dir struct {
	name    string
	entries []fs.DirEntry
}

func newDir(p *Package, name string) (*dir, error) {
	d := &dir{name: name}
	prefix := name + "/"
	if name == "." {
		prefix = ""
	}
	seen := map[string]bool{}
	for _, m := range p.members {
		rest, ok := strings.CutPrefix(m.name, prefix)
		if !ok {
			continue
		}
		first, _, below := strings.Cut(rest, "/")
		if seen[first] {
			continue
		}
		seen[first] = true
		if below {
			d.entries = append(d.entries, fs.FileInfoToDirEntry(dirInfo(first)))
			continue
		}
		fi, err := fs.Stat(p.files, m.name)
		if err != nil {
			return nil, err
		}
		d.entries = append(d.entries, fs.FileInfoToDirEntry(fi))
	}
	slices.SortFunc(d.entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return d, nil
}

func (d *dir) Stat() (fs.FileInfo, error) { return dirInfo(path.Base(d.name)), nil }
func (d *dir) Close() error               { return nil }

func (d *dir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: errors.New("is a directory")}
}

// ReadDir implements fs.ReadDirFile.
func (d *dir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(d.entries) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.entries) {
		n = len(d.entries)
	}
	out := d.entries[:n]
	d.entries = d.entries[n:]
	return out, nil
}

type dirInfo string

func (i dirInfo) Name() string     { return string(i) }
func (dirInfo) Size() int64        { return 0 }
func (dirInfo) Mode() fs.FileMode  { return fs.ModeDir | 0o555 }
func (dirInfo) ModTime() time.Time { return time.Time{} }
func (dirInfo) IsDir() bool        { return true }
func (dirInfo) Sys() any           { return nil }
