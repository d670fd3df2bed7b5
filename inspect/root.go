package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

const (
	// maxHops is how many symbolic links one name may lead through, as in
	// Linux.
	maxHops = 40
	// maxPath bounds a name with all the links in it put in, as PATH_MAX.
	maxPath = 4096
)

var (
	errLoop    = errors.New("too many symbolic links")
	errTooLong = errors.New("name too long")
	errNotDir  = errors.New("not a directory")
)

// A Root is the file tree of a guest: a root file system with others mounted
// over its folders. It is an fs.FS whose Open, Stat and ReadDir follow
// symbolic links the way the guest would: an absolute link starts at the
// root of this tree, "..", at most at the root; nothing leads out of it.
// Lstat and ReadLink answer for a link that is the last part of a name.
//
// A Root may be used concurrently once its mounts are made.
type Root struct {
	mounts []mount // the deepest first
}

type mount struct {
	dir  string // resolved; "." for the root file system
	fsys fs.ReadLinkFS
}

var (
	_ fs.ReadLinkFS = (*Root)(nil)
	_ fs.StatFS     = (*Root)(nil)
	_ fs.ReadDirFS  = (*Root)(nil)
)

// NewRoot returns a tree of one file system.
func NewRoot(fsys fs.ReadLinkFS) *Root {
	return &Root{mounts: []mount{{".", fsys}}}
}

// Mount puts fsys over the folder dir, which must exist.
func (r *Root) Mount(dir string, fsys fs.ReadLinkFS) error {
	p, err := r.Resolve(dir)
	if err != nil {
		return err
	}
	fi, err := r.lstat(p)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return &fs.PathError{Op: "mount", Path: dir, Err: errNotDir}
	}
	// A later mount over the same folder hides the earlier one.
	r.mounts = append([]mount{{p, fsys}}, r.mounts...)
	slices.SortStableFunc(r.mounts, func(a, b mount) int { return cmp.Compare(depth(b.dir), depth(a.dir)) })
	return nil
}

func depth(dir string) int {
	if dir == "." {
		return 0
	}
	return 1 + strings.Count(dir, "/")
}

// mountOf is the folder over which the file system that holds the resolved
// name p is mounted.
func (r *Root) mountOf(p string) string {
	for _, m := range r.mounts {
		if m.dir == "." || p == m.dir || strings.HasPrefix(p, m.dir+"/") {
			return m.dir
		}
	}
	return "."
}

// at is the file system that holds the resolved name p, and the name there.
func (r *Root) at(p string) (fs.ReadLinkFS, string) {
	for _, m := range r.mounts {
		switch {
		case m.dir == ".":
			return m.fsys, p
		case p == m.dir:
			return m.fsys, "."
		case strings.HasPrefix(p, m.dir+"/"):
			return m.fsys, p[len(m.dir)+1:]
		}
	}
	return nil, "" // not reached: the root file system holds everything
}

func (r *Root) lstat(p string) (fs.FileInfo, error) {
	fsys, in := r.at(p)
	fi, err := fsys.Lstat(in)
	if err != nil {
		return nil, err
	}
	if in == "." {
		fi = named{fi, path.Base(p)}
	}
	return fi, nil
}

// named gives the root of a mounted file system the name of its folder.
type named struct {
	fs.FileInfo
	name string
}

func (n named) Name() string { return n.name }

// Resolve returns name with all symbolic links followed: the place in the
// tree where the file is. A file that does not exist is an error.
func (r *Root) Resolve(name string) (string, error) { return r.resolve("resolve", name, true) }

func (r *Root) resolve(op, name string, last bool) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	fail := func(err error) (string, error) {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return "", &fs.PathError{Op: op, Path: name, Err: err}
	}
	cur, rest, hops := ".", name, 0
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			cur = path.Dir(cur)
			continue
		}
		next := path.Join(cur, part)
		if len(next)+len(rest) > maxPath {
			return fail(errTooLong)
		}
		fi, err := r.lstat(next)
		if err != nil {
			return fail(err)
		}
		switch {
		case fi.Mode()&fs.ModeSymlink != 0 && (last || rest != ""):
			if hops++; hops > maxHops {
				return fail(errLoop)
			}
			fsys, in := r.at(next)
			target, err := fsys.ReadLink(in)
			if err != nil {
				return fail(err)
			}
			if target == "" || strings.Contains(target, "\x00") {
				return fail(fs.ErrNotExist)
			}
			target = open.EscapeName(target)
			if strings.HasPrefix(target, "/") {
				cur = "."
			}
			if rest != "" {
				target += "/" + rest
			}
			if len(target) > maxPath {
				return fail(errTooLong)
			}
			rest = target
			continue
		case rest != "" && !fi.IsDir():
			return fail(errNotDir)
		}
		cur = next
	}
	return cur, nil
}

// Open opens the named file, following links.
func (r *Root) Open(name string) (fs.File, error) {
	p, err := r.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	fsys, in := r.at(p)
	f, err := fsys.Open(in)
	if err != nil {
		return nil, err
	}
	if d, ok := f.(fs.ReadDirFile); ok {
		return &rootDir{ReadDirFile: d, r: r, name: name}, nil
	}
	return f, nil
}

// rootDir is an opened directory that shows what is mounted in it.
type rootDir struct {
	fs.ReadDirFile
	r    *Root
	name string
	rest []fs.DirEntry
	read bool
}

func (d *rootDir) Stat() (fs.FileInfo, error) { return d.r.Stat(d.name) }

func (d *rootDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		all, err := d.r.ReadDir(d.name)
		if err != nil {
			return nil, err
		}
		d.rest, d.read = all, true
	}
	if n > 0 && len(d.rest) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.rest) {
		n = len(d.rest)
	}
	list := d.rest[:n:n]
	d.rest = d.rest[n:]
	return list, nil
}

// Stat describes the named file, following links.
func (r *Root) Stat(name string) (fs.FileInfo, error) {
	p, err := r.resolve("stat", name, true)
	if err != nil {
		return nil, err
	}
	fi, err := r.lstat(p)
	if err != nil {
		return nil, err
	}
	if b := path.Base(name); b != fi.Name() {
		fi = named{fi, b}
	}
	return fi, nil
}

// Lstat describes the named file; a link that is the last part is not
// followed.
func (r *Root) Lstat(name string) (fs.FileInfo, error) {
	p, err := r.resolve("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return r.lstat(p)
}

// ReadLink returns the target of the named link as it is written.
func (r *Root) ReadLink(name string) (string, error) {
	p, err := r.resolve("readlink", name, false)
	if err != nil {
		return "", err
	}
	fsys, in := r.at(p)
	return fsys.ReadLink(in)
}

// ReadDir lists the named folder by name, following links in name but not
// in the list.
func (r *Root) ReadDir(name string) ([]fs.DirEntry, error) {
	p, err := r.resolve("readdir", name, true)
	if err != nil {
		return nil, err
	}
	fsys, in := r.at(p)
	list, err := fs.ReadDir(fsys, in)
	if err != nil {
		return nil, err
	}
	for i, d := range list {
		q := path.Join(p, d.Name())
		if slices.ContainsFunc(r.mounts, func(m mount) bool { return m.dir == q }) {
			if fi, err := r.lstat(q); err == nil {
				list[i] = fs.FileInfoToDirEntry(fi)
			}
		}
	}
	return list, nil
}

// Read returns the whole of the named regular file, following links. A file
// of more than limit bytes is ErrLimit.
func (r *Root) Read(name string, limit int64) ([]byte, error) {
	f, err := r.openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%w: more than %d bytes", formats.ErrLimit, limit)}
	}
	return b, nil
}

// openRegular opens a regular file, following links. A folder, a device or a
// FIFO is an error.
func (r *Root) openRegular(name string) (fs.File, error) {
	fi, err := r.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	return r.Open(name)
}

// GuestPath turns a path as a user writes it ("/etc/hosts", "etc//hosts/.")
// into a name for the methods of Root. Bytes that are not UTF-8 become the
// code points by which file systems show them.
func GuestPath(p string) string {
	if !utf8.ValidString(p) {
		p = open.EscapeName(p)
	}
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p == "" {
		return "."
	}
	return p
}
