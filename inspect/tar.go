package inspect

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

// maxLinks bounds the inodes with several names that are remembered.
const maxLinks = 1 << 20

// TarOptions say how to write an archive. Nil means the defaults.
type TarOptions struct {
	// Skipped is called for what an archive cannot hold (a socket). Nil
	// ignores it.
	Skipped func(name string, err error)
	// OneFileSystem leaves out what is mounted below the folder.
	OneFileSystem bool
}

// TarOut writes the folder name of root, or a single file, as a PAX archive:
// owners, modes, times in nanoseconds, devices, hard links and extended
// attributes (SCHILY.xattr). Names are relative to the folder, sorted, and
// begin with "./". The same tree gives the same bytes.
func TarOut(ctx context.Context, w io.Writer, root *Root, name string, o *TarOptions) error {
	if o == nil {
		o = new(TarOptions)
	}
	name = GuestPath(name)
	dir, err := root.Resolve(name)
	if err != nil {
		return err
	}
	fi, err := root.lstat(dir)
	if err != nil {
		return err
	}
	t := &tarWriter{ctx: ctx, root: root, tw: tar.NewWriter(w), o: o, links: map[inode]string{}}
	if fi.IsDir() {
		if err := t.put(".", fi, dir); err != nil {
			return err
		}
		if err := t.walk(dir, "", 0); err != nil {
			return err
		}
	} else if err := t.put(path.Base(name), fi, dir); err != nil {
		return err
	}
	return t.tw.Close()
}

type tarWriter struct {
	ctx   context.Context
	root  *Root
	tw    *tar.Writer
	o     *TarOptions
	links map[inode]string // first name of files that have several
}

// An inode names a file whatever its name is.
type inode struct {
	mount string
	ino   uint64
}

func (t *tarWriter) walk(dir, rel string, level int) error {
	top := t.root.mountOf(dir)
	return walk(t.ctx, t.root, dir, rel, true, level, func(r string, fi fs.FileInfo, full string) error {
		if t.o.OneFileSystem {
			if t.root.mountOf(full) != top {
				return nil
			}
		}
		return t.put(r, fi, full)
	})
}

func (t *tarWriter) put(rel string, fi fs.FileInfo, full string) error {
	st := statOf(fi)
	h := &tar.Header{
		Name: "./" + open.RawName(rel), Mode: int64(unixPerm(fi.Mode())), Uid: int(st.UID), Gid: int(st.GID), ModTime: fi.ModTime(),
		Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	if rel == "." {
		h.Name = "./"
	}
	fail := func(err error) error { return &fs.PathError{Op: "archive", Path: full, Err: err} }
	switch typeName(fi.Mode()) {
	case "file":
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
		if st.Nlink > 1 {
			key := inode{t.root.mountOf(full), st.Ino}
			if first, ok := t.links[key]; ok {
				h.Typeflag, h.Size, h.Linkname = tar.TypeLink, 0, first
			} else if len(t.links) == maxLinks {
				return fail(fmt.Errorf("%w: more than %d files with several names", formats.ErrLimit, maxLinks))
			} else {
				t.links[key] = h.Name
			}
		}
	case "directory":
		h.Typeflag = tar.TypeDir
		if !strings.HasSuffix(h.Name, "/") {
			h.Name += "/"
		}
	case "symlink":
		h.Typeflag = tar.TypeSymlink
		target, err := t.root.ReadLink(full)
		if err != nil {
			return err
		}
		h.Linkname = target
	case "char":
		h.Typeflag = tar.TypeChar
	case "block":
		h.Typeflag = tar.TypeBlock
	case "fifo":
		h.Typeflag = tar.TypeFifo
	default:
		if t.o.Skipped != nil {
			t.o.Skipped(full, errSocket)
		}
		return nil
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(st.Major), int64(st.Minor)
	}
	if h.Typeflag != tar.TypeLink {
		attrs, err := st.Xattrs()
		if err != nil {
			return fail(err)
		}
		for _, a := range attrs {
			h.PAXRecords["SCHILY.xattr."+a.Name] = string(a.Value)
		}
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return fail(err)
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	f, err := t.root.Open(full)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := copyFile(t.ctx, t.tw, f)
	if err == nil && n != h.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fail(err)
	}
	return nil
}
