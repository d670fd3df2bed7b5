package inspect

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

// maxDepth bounds how deep a walk goes: a tree of a sane guest has about 30
// levels, and names longer than PATH_MAX cannot be opened by the guest.
const maxDepth = 1024

// A FileInfo is a file of a guest, as List shows it.
type FileInfo struct {
	Name   string    `json:"name"` // relative to what was listed
	Type   string    `json:"type"` // file, directory, symlink, block, char, fifo, socket
	Mode   string    `json:"mode"` // as ls prints it
	Perm   uint32    `json:"permissions"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Nlink  uint64    `json:"links"`
	Size   int64     `json:"size"`
	Mtime  time.Time `json:"mtime"`
	Target string    `json:"target,omitempty"`
	Major  uint32    `json:"major,omitempty"`
	Minor  uint32    `json:"minor,omitempty"`
}

// ListOptions say how to list. Nil means names only.
type ListOptions struct {
	Long      bool // mode, owner, size and time as well
	Recursive bool
	JSON      bool // one object
}

// List writes what the folder name of root holds, or the file itself, sorted
// by name. Links are followed in name, not below it.
func List(ctx context.Context, w io.Writer, root *Root, name string, o *ListOptions) error {
	if o == nil {
		o = new(ListOptions)
	}
	name = GuestPath(name)
	bw := bufio.NewWriter(w)
	first := true
	put := func(rel string, fi fs.FileInfo, full string) error {
		f, err := describe(root, rel, fi, full)
		if err != nil {
			return err
		}
		if o.JSON {
			b, err := json.Marshal(f)
			if err != nil {
				return err
			}
			if !first {
				bw.WriteByte(',')
			}
			first = false
			_, err = fmt.Fprintf(bw, "\n    %s", b)
			return err
		}
		if !o.Long {
			_, err = fmt.Fprintln(bw, Clean(open.RawName(rel)))
			return err
		}
		size := fmt.Sprint(f.Size)
		if f.Type == "block" || f.Type == "char" {
			size = fmt.Sprintf("%d, %d", f.Major, f.Minor)
		}
		line := fmt.Sprintf("%s %3d %5d %5d %10s %s %s", f.Mode, f.Nlink, f.UID, f.GID, size, f.Mtime.UTC().Format("2006-01-02 15:04:05"), Clean(open.RawName(rel)))
		if f.Type == "symlink" {
			line += " -> " + Clean(f.Target)
		}
		_, err = fmt.Fprintln(bw, line)
		return err
	}
	if o.JSON {
		b, _ := json.Marshal("/" + trimDot(name))
		fmt.Fprintf(bw, "{\n  \"path\": %s,\n  \"entries\": [", b)
	}
	fi, err := root.Stat(name)
	switch {
	case err != nil:
		return err
	case !fi.IsDir():
		if fi, err = root.Lstat(name); err == nil {
			err = put(path.Base(name), fi, name)
		}
	default:
		var dir string
		if dir, err = root.Resolve(name); err == nil {
			err = walk(ctx, root, dir, "", o.Recursive, 0, put)
		}
	}
	if err != nil {
		return err
	}
	if o.JSON {
		end := "]\n}\n"
		if !first {
			end = "\n  ]\n}\n"
		}
		bw.WriteString(end)
	}
	return bw.Flush()
}

func trimDot(name string) string {
	if name == "." {
		return ""
	}
	return name
}

// walk calls f for what is in the resolved folder dir, in the order of
// names, each folder before what it holds.
func walk(ctx context.Context, root *Root, dir, rel string, recursive bool, level int, f func(rel string, fi fs.FileInfo, full string) error) error {
	if level > maxDepth {
		return &fs.PathError{Op: "walk", Path: dir, Err: fmt.Errorf("%w: more than %d levels", formats.ErrLimit, maxDepth)}
	}
	list, err := root.ReadDir(dir)
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, d := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		full, r := path.Join(dir, d.Name()), path.Join(rel, d.Name())
		fi, err := root.lstat(full)
		if err != nil {
			return err
		}
		if err := f(r, fi, full); err != nil {
			return err
		}
		if recursive && fi.IsDir() {
			if err := walk(ctx, root, full, r, true, level+1, f); err != nil {
				return err
			}
		}
	}
	return nil
}

func describe(root *Root, rel string, fi fs.FileInfo, full string) (*FileInfo, error) {
	st := statOf(fi)
	f := &FileInfo{
		Name: rel, Type: typeName(fi.Mode()), Mode: lsMode(fi.Mode()), Perm: unixPerm(fi.Mode()), UID: st.UID, GID: st.GID,
		Nlink: st.Nlink, Size: fi.Size(), Mtime: fi.ModTime().UTC(), Major: st.Major, Minor: st.Minor,
	}
	if f.Type == "symlink" {
		var err error
		if f.Target, err = root.ReadLink(full); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// statOf is the metadata of fi; of a file system that has none, what can be
// said of any file.
func statOf(fi fs.FileInfo) *formats.Stat {
	if st, ok := fi.Sys().(*formats.Stat); ok && st != nil {
		return st
	}
	return &formats.Stat{Nlink: 1}
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m&fs.ModeCharDevice != 0:
		return "char"
	case m&fs.ModeDevice != 0:
		return "block"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "unknown"
}

// unixPerm is the permission bits with setuid, setgid and sticky as Unix
// numbers them.
func unixPerm(m fs.FileMode) uint32 {
	p := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		p |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		p |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		p |= 0o1000
	}
	return p
}

func lsMode(m fs.FileMode) string {
	p := unixPerm(m)
	b := []byte("----------")
	b[0] = map[string]byte{"file": '-', "directory": 'd', "symlink": 'l', "char": 'c', "block": 'b', "fifo": 'p', "socket": 's', "unknown": '?'}[typeName(m)]
	for i := range 9 {
		if p&(0o400>>i) != 0 {
			b[1+i] = "rwx"[i%3]
		}
	}
	for _, s := range []struct {
		bit uint32
		at  int
		ch  string
	}{{0o4000, 3, "Ss"}, {0o2000, 6, "Ss"}, {0o1000, 9, "Tt"}} {
		if p&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.ch[1]
			} else {
				b[s.at] = s.ch[0]
			}
		}
	}
	return string(b)
}

// Cat writes the regular file name of root to w, following links.
func Cat(ctx context.Context, w io.Writer, root *Root, name string) error {
	f, err := root.openRegular(GuestPath(name))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = copyFile(ctx, w, f)
	return err
}

// copyFile copies f; holes are not read.
func copyFile(ctx context.Context, w io.Writer, f fs.File) (int64, error) {
	img, ok := f.(formats.Image)
	if !ok {
		return io.Copy(w, ctxReader{ctx, f})
	}
	buf := make([]byte, 256<<10)
	var total int64
	for e, err := range formats.Extents(img, 0) {
		if err != nil {
			return total, err
		}
		if e.Kind != formats.Data {
			clear(buf)
		}
		for off := e.Off; off < e.End(); {
			if err := ctx.Err(); err != nil {
				return total, err
			}
			p := buf[:min(int64(len(buf)), e.End()-off)]
			if e.Kind == formats.Data {
				if n, err := img.ReadAt(p, off); n < len(p) {
					return total, cmp.Or(err, io.ErrUnexpectedEOF)
				}
			}
			n, err := w.Write(p)
			total += int64(n)
			if err != nil {
				return total, err
			}
			off += int64(len(p))
		}
	}
	return total, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

var errSocket = errors.New("a socket: an archive cannot hold it")
