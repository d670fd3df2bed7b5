// Package open is the one place that knows every format: it recognises disks
// and what is on them, opens them, and makes new ones. Files of the host are
// opened here, and nowhere below.
package open

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"imgmaint/formats"
)

// headSize is how much of a file the recognition of formats looks at. It
// covers the volume descriptor of ISO 9660, at 32 KiB.
const headSize = 64 << 10

// DiskOptions say how to open a disk. The zero value opens what the content
// shows, and no other file.
type DiskOptions struct {
	// Format is the declared format. It wins over what the content looks
	// like; empty means to look.
	Format string
	// BackingDir is the only folder in which backing files, data files and
	// parents may be; empty means that they are not opened.
	BackingDir string
	// Snapshot is the name or the number of an internal snapshot to read in
	// place of the current state.
	Snapshot string
}

// An Image is an opened disk and the host files it is read from.
type Image struct {
	formats.Image
	Path   string
	Format string // name in Formats
	chain  []*os.File
	root   *os.Root
	pkg    *Appliance // of a disk in a package, which has the files then
}

// Disk opens the disk image at path, a regular file or a block device, or a
// disk of a package: PKG#DISK, or PKG when it has one disk. A declared format
// is that of the disk; PKG alone is opened as a package only without one. No
// file outside of a package is opened for a disk in it.
func Disk(path string, o *DiskOptions) (*Image, error) {
	if o == nil {
		o = new(DiskOptions)
	}
	m := &Image{Path: path}
	path, sel, inside := Split(path)
	f, size, err := openHost(os.OpenFile, path)
	if err != nil {
		return nil, err
	}
	m.pkg, err = packageOf(f, size, path, o.Format, inside)
	if err != nil {
		f.Close()
		return nil, err
	}
	if m.pkg != nil {
		m.Image, m.Format, err = m.pkg.disk(sel, *o)
		if err != nil {
			m.pkg.Close()
			return nil, err
		}
		return m, nil
	}
	m.chain = []*os.File{f}
	dir := "."
	if o.BackingDir != "" {
		if m.root, err = os.OpenRoot(o.BackingDir); err != nil {
			m.Close()
			return nil, err
		}
		dir = dirWithin(o.BackingDir, path)
	}
	m.Image, m.Format, err = m.open(f, size, dir, *o)
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close closes all files of the chain.
func (m *Image) Close() error {
	if m.pkg != nil {
		return m.pkg.Close()
	}
	var errs []error
	for _, f := range m.chain {
		errs = append(errs, f.Close())
	}
	if m.root != nil {
		errs = append(errs, m.root.Close())
	}
	return errors.Join(errs...)
}

// Files are the host files the disk is read from, the top one first.
func (m *Image) Files() []*os.File {
	if m.pkg != nil {
		return m.pkg.files()
	}
	return m.chain
}

// Info is what the image says about itself.
func (m *Image) Info() formats.Info {
	if d, ok := m.Image.(formats.Describer); ok {
		return d.Info()
	}
	return formats.Info{Format: m.Format, VirtualSize: m.Size()}
}

// Unwrap is the image as its leaf package made it.
func (m *Image) Unwrap() formats.Image { return m.Image }

// Describe is the Info of the image at path, or of a disk of a package as
// Disk takes it, read without opening what it refers to. It answers for
// encrypted images and others that Disk refuses, as long as their header is
// sound.
func Describe(path, format string) (formats.Info, error) {
	s, err := openSource(path, format)
	if err != nil {
		return formats.Info{}, err
	}
	defer s.Close()
	return s.format.describe(s.r, s.size)
}

// Check checks the metadata of the image at path, or of a disk of a package
// as Disk takes it, of that alone, and returns the name of its format too.
func Check(path, format string) (*formats.CheckReport, string, error) {
	s, err := openSource(path, format)
	if err != nil {
		return nil, "", err
	}
	defer s.Close()
	r, err := s.format.check(s.r, s.size)
	return r, s.format.name, err
}

// Reader opens a disk image in size bytes of r, and returns the name of its
// format too. It opens no other file.
func Reader(r io.ReaderAt, size int64, format string) (formats.Image, string, error) {
	d, err := choose(r, size, format)
	if err != nil {
		return nil, "", err
	}
	img, err := d.open(r, size, leafOptions{})
	return img, d.name, err
}

// open opens one file of a chain; dir is its folder within the root.
func (m *Image) open(f *os.File, size int64, dir string, o DiskOptions) (formats.Image, string, error) {
	d, err := choose(f, size, o.Format)
	if err != nil {
		return nil, "", err
	}
	leaf := leafOptions{snapshot: o.Snapshot}
	if m.root != nil {
		leaf.resolve = func(ref formats.Reference) (formats.Image, error) { return m.resolve(d.name, dir, ref) }
	}
	img, err := d.open(f, size, leaf)
	return img, d.name, err
}

// openHost opens a file for reading and finds its size. It does not wait for
// the other end of a FIFO, and refuses everything that is not a regular file
// or a block device.
func openHost(open func(string, int, fs.FileMode) (*os.File, error), path string) (*os.File, int64, error) {
	f, err := open(path, os.O_RDONLY|nonblock, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil {
		switch mode := fi.Mode(); {
		case mode.IsRegular():
			return f, fi.Size(), nil
		case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
			var size int64
			if size, err = f.Seek(0, io.SeekEnd); err == nil {
				return f, size, nil
			}
		default:
			err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file or block device")}
		}
	}
	f.Close()
	return nil, 0, err
}

// dirWithin is the folder of path relative to root when it lies there, else
// the root itself.
func dirWithin(root, path string) string {
	r, err1 := realPath(root)
	d, err2 := realPath(filepath.Dir(path))
	if err1 != nil || err2 != nil {
		return "."
	}
	rel, err := filepath.Rel(r, d)
	if err != nil || !filepath.IsLocal(rel) {
		return "."
	}
	return filepath.ToSlash(rel)
}

func realPath(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// choose picks the format: the declared one, or the one the content shows. A
// file that shows two is refused with both names; one that shows none is raw.
func choose(r io.ReaderAt, size int64, declared string) (diskFormat, error) {
	if declared != "" {
		return byName(declared)
	}
	head := make([]byte, min(size, headSize))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return diskFormat{}, err
	}
	var found []diskFormat
	probe := &probeReader{r: r}
	for _, d := range diskFormats {
		if d.sniff != nil && d.sniff(head, probe, size) {
			found = append(found, d)
		}
	}
	if probe.err != nil { // what can't be read can't be ruled out
		return diskFormat{}, probe.err
	}
	switch len(found) {
	case 0:
		return byName("raw")
	case 1:
		if what := rawEvidence(head, found[0].name); what != "" {
			return diskFormat{}, formats.Unknown("disk", 0, "format",
				"matches %s and raw (%s): declare which with --format", found[0].name, what)
		}
		return found[0], nil
	}
	return diskFormat{}, formats.Unknown("disk", 0, "format",
		"matches %s and %s: declare which with --format", found[0].name, found[1].name)
}

// A probeReader keeps the first error that is not the end of the file.
type probeReader struct {
	r   io.ReaderAt
	err error
}

func (p *probeReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.r.ReadAt(b, off)
	if err != nil && err != io.EOF && p.err == nil {
		p.err = err
	}
	return n, err
}

// rawEvidence looks in what should be the header of a container for signs
// that the file is a raw disk whose guest wrote that header.
func rawEvidence(head []byte, format string) string {
	// No header of these formats has anything at 510: qcow2 would need a
	// backing file name that reaches it and ends in these bytes, the sparse
	// VMDK header is padded with zeros there, and a VHD's footer copy ends in
	// reserved zeros.
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa {
		return "boot sector"
	}
	// In a qcow2 file of 64 KiB clusters this place belongs to the header.
	if format == "qcow2" && len(head) >= 0x8006 && head[20] == 0 && head[23] >= 16 && string(head[0x8001:0x8006]) == "CD001" {
		return "ISO 9660"
	}
	return ""
}

func byName(name string) (diskFormat, error) {
	if name == "vpc" {
		name = "vhd"
	}
	for _, d := range diskFormats {
		if d.name == name {
			return d, nil
		}
	}
	return diskFormat{}, fmt.Errorf("disk format %q: %w", name, formats.ErrUnknown)
}
