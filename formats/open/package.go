package open

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"imgmaint/formats"
	"imgmaint/formats/appliance/ovf"
	"imgmaint/formats/appliance/xvm"
)

const (
	// maxPackageDisk bounds, in bytes, what a compressed disk inflates to
	// where its package declares no size: no disk that travels in a package is
	// larger.
	maxPackageDisk = 64 << 40
	// diskSlack is what a disk format may add to the declared size of a disk,
	// beside as much again for the snapshots it may hold.
	diskSlack = 64 << 20
	// maxChoices bounds the disks that an error names.
	maxChoices = 16
)

// PackageOptions say how to open a package. Nil is the default.
type PackageOptions struct {
	// MaxDisk bounds, in bytes, what a compressed disk inflates to. 0 is 64
	// TiB, and twice the declared size where there is one.
	MaxDisk int64
}

// An Appliance is an opened package and the host files it is read from. Its
// methods are safe for concurrent use.
type Appliance struct {
	formats.Package
	Path   string
	Format string // xvm, xvm2 or ovf

	file *os.File // the archive, or the descriptor of a folder
	root *os.Root // of a folder
	ovf  *ovf.Package
	xvm  *xvm.Package

	maxDisk int64

	mu    sync.Mutex
	held  []*os.File // members of a folder that disks are read from
	disks map[string]storedDisk
}

// A storedDisk is what the format of a disk is read from.
type storedDisk struct {
	img    formats.Image
	closer io.Closer
}

// Package opens the package at path: an OVA, an .ovf descriptor, whose folder
// then holds the other members, or an XVM file. The content tells which, not
// the name. What is none of these is ErrUnknown.
func Package(path string, o *PackageOptions) (*Appliance, error) {
	f, size, err := openHost(os.OpenFile, path)
	if err != nil {
		return nil, err
	}
	p, err := packageIn(f, size, path, o)
	if err == nil && p == nil {
		err = formats.Unknown("package", 0, "", "neither OVA, nor OVF descriptor, nor XVM")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return p, nil
}

// packageIn opens the package in f, which it keeps when it succeeds. It
// returns nil and no error for what does not look like a package.
func packageIn(f *os.File, size int64, path string, o *PackageOptions) (*Appliance, error) {
	head := make([]byte, min(size, headSize))
	if n, err := f.ReadAt(head, 0); n < len(head) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	p := &Appliance{Path: path, file: f, maxDisk: maxPackageDisk, disks: map[string]storedDisk{}}
	if o != nil && o.MaxDisk > 0 {
		p.maxDisk = o.MaxDisk
	}
	var err error
	switch {
	case xvm.Sniff(head): // a tar
		err = p.openTar(f, size, head)
	case sniffEnvelope(head):
		err = p.openFolder(path)
	default:
		return nil, nil
	}
	if err != nil {
		if p.root != nil {
			p.root.Close()
		}
		return nil, err
	}
	p.Format = p.Descriptor().Format
	return p, nil
}

// ovfOptions: sections that are required and unknown are listed as problems,
// which matters to whoever deploys.
var ovfOptions = ovf.Options{ParseOptions: ovf.ParseOptions{AllowRequired: true}}

// openTar opens a tar by what comes first: an OVA begins with its descriptor.
// A tar that begins otherwise may be XVM, or an OVA in the wrong order.
func (p *Appliance) openTar(f *os.File, size int64, head []byte) error {
	first, _, _ := strings.Cut(string(head[:100]), "\x00") // name, 100 bytes at 0
	if !strings.EqualFold(filepath.Ext(first), ".ovf") {
		x, err := xvm.Open(f, size, &xvm.Options{MaxDisk: p.maxDisk})
		if err == nil {
			p.xvm, p.Package = x, x
			return nil
		}
		if !errors.Is(err, formats.ErrUnknown) {
			return err
		}
	}
	x, err := ovf.OpenOVA(f, size, &ovfOptions)
	if err != nil {
		return err
	}
	p.ovf, p.Package = x, x
	return nil
}

// openFolder opens the package whose descriptor is at path. No member is
// looked for outside of its folder.
func (p *Appliance) openFolder(path string) error {
	var err error
	if p.root, err = os.OpenRoot(filepath.Dir(path)); err != nil {
		return err
	}
	x, err := ovf.Open(folder{p}, filepath.Base(path), &ovfOptions)
	if err != nil {
		return err
	}
	p.ovf, p.Package = x, x
	p.forget(0)
	return nil
}

// sniffEnvelope reports whether head begins an OVF descriptor.
func sniffEnvelope(head []byte) bool {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n")
	if len(text) == 0 || text[0] != '<' || !bytes.Contains(text, []byte("Envelope")) {
		return false
	}
	// The namespaces of the standard, and the one before it.
	return bytes.Contains(text, []byte("http://schemas.dmtf.org/ovf/envelope/")) ||
		bytes.Contains(text, []byte("http://www.vmware.com/schema/ovf/1/envelope"))
}

// A folder is the host folder of a package, read through its os.Root.
type folder struct{ p *Appliance }

// Open implements fs.FS. Only regular files are opened.
func (d folder) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f, _, err := openHost(d.p.root.OpenFile, filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	d.p.held = append(d.p.held, f)
	return f, nil
}

// Stat implements fs.StatFS.
func (d folder) Stat(name string) (fs.FileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrInvalid}
	}
	return d.p.root.Stat(filepath.FromSlash(name))
}

// Open implements fs.FS: it opens a member.
func (p *Appliance) Open(name string) (fs.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.forget(len(p.held))
	return p.Package.Open(name)
}

// forget drops what was opened since, for a caller who closes it himself.
func (p *Appliance) forget(n int) { p.held = p.held[:n] }

// Close closes everything the package and its disks are read from.
func (p *Appliance) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, d := range p.disks {
		if d.closer != nil {
			errs = append(errs, d.closer.Close())
		}
	}
	p.disks = nil
	errs = append(errs, p.Package.Close(), p.file.Close())
	if p.root != nil {
		errs = append(errs, p.root.Close())
	}
	return errors.Join(errs...)
}

// find returns the disk that sel names: by id, by member, or by its number
// from 1. An empty sel stands for the only disk.
func (p *Appliance) find(sel string) (formats.PackageDisk, error) {
	disks := p.Descriptor().Disks
	if sel == "" {
		var full []formats.PackageDisk
		for _, k := range disks {
			if k.Member != "" {
				full = append(full, k)
			}
		}
		if len(full) == 1 {
			return full[0], nil
		}
		return formats.PackageDisk{}, formats.Unknown(p.Format, -1, "disk", "%s", p.choices("choose one of "))
	}
	for _, k := range disks {
		if k.ID == sel {
			return k, nil
		}
	}
	var found []formats.PackageDisk
	for _, k := range disks {
		if k.Member == sel {
			found = append(found, k)
		}
	}
	if len(found) > 0 {
		return found[0], nil
	}
	if n, err := strconv.Atoi(sel); err == nil && n >= 1 && n <= len(disks) {
		return disks[n-1], nil
	}
	return formats.PackageDisk{}, formats.Unknown(p.Format, -1, "disk", "no disk %.200q: %s", sel, p.choices("there are "))
}

// choices names the disks in words.
func (p *Appliance) choices(lead string) string {
	disks := p.Descriptor().Disks
	if len(disks) == 0 {
		return "the package has no disks"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d disks, %s", len(disks), lead)
	for i, k := range disks {
		if i == maxChoices {
			b.WriteString(", ...")
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "#%.200s", k.ID)
		switch k.Member {
		case "":
			b.WriteString(" (empty)")
		default:
			fmt.Fprintf(&b, " (%.200s)", k.Member)
		}
	}
	return b.String()
}

// Disk opens a disk of the package and returns the name of its format too.
// The disk is named by its id, its member or its number from 1; an empty name
// stands for the only disk there is. A compressed disk is inflated once, to
// index it; nothing is unpacked, and nothing outside of the package is opened.
// The image is valid until the package is closed.
func (p *Appliance) Disk(sel string) (formats.Image, string, error) {
	return p.disk(sel, DiskOptions{})
}

func (p *Appliance) disk(sel string, o DiskOptions) (formats.Image, string, error) {
	d, stored, err := p.stored(sel, o.Format)
	if err != nil {
		return nil, "", err
	}
	if d.name == "raw" && o.Snapshot == "" {
		return stored, d.name, nil // it knows its zeros itself
	}
	img, err := d.open(stored, stored.Size(), leafOptions{snapshot: o.Snapshot})
	return img, d.name, err
}

// stored returns the bytes of a disk as its format stores them, and the
// format: the one given, the one the package declares, or what the content
// shows.
func (p *Appliance) stored(sel, format string) (diskFormat, formats.Image, error) {
	k, err := p.find(sel)
	if err != nil {
		return diskFormat{}, nil, err
	}
	if k.Member == "" {
		return diskFormat{}, nil, formats.Unsupported(p.Format, -1, "disk", "%.200q starts empty: there is nothing to read", k.ID)
	}
	if k.Parent != "" {
		return diskFormat{}, nil, formats.Unsupported(p.Format, -1, "disk", "%.200q holds only what differs from %.200q", k.ID, k.Parent)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.disks[k.ID]
	if !ok {
		if s, err = p.openStored(k); err != nil {
			return diskFormat{}, nil, err
		}
		p.disks[k.ID] = s
	}
	if format == "" {
		format = k.Format
	}
	d, err := choose(s.img, s.img.Size(), format)
	return d, s.img, err
}

func (p *Appliance) openStored(k formats.PackageDisk) (storedDisk, error) {
	if p.disks == nil {
		return storedDisk{}, fs.ErrClosed
	}
	if p.xvm != nil {
		img, err := p.xvm.OpenDisk(k.ID, nil)
		return storedDisk{img: img}, err
	}
	limit := p.maxDisk
	if k.Size > 0 && k.Size < (maxPackageDisk-diskSlack)/2 {
		limit = min(limit, 2*k.Size+diskSlack)
	}
	for i := range p.ovf.Envelope().Disks {
		d := &p.ovf.Envelope().Disks[i]
		if d.ID != k.ID {
			continue
		}
		n := len(p.held)
		img, err := p.ovf.OpenImage(d.FileRef, limit)
		if err != nil {
			p.forget(n)
			return storedDisk{}, err
		}
		return storedDisk{img, img}, nil
	}
	return storedDisk{}, formats.Corrupt(p.Format, -1, "disk", "%.200q is not in the descriptor", k.ID)
}

// files are the host files that are open.
func (p *Appliance) files() []*os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*os.File{p.file}, p.held...)
}

// Split splits PKG#DISK into the path of a package and the disk in it; ok is
// false when the argument is a path as a whole. A file that really has such a
// name is the file.
func Split(arg string) (path, disk string, ok bool) {
	if _, err := os.Lstat(arg); err == nil {
		return arg, "", false
	}
	for i := len(arg) - 1; i > 0; i-- {
		if arg[i] != '#' {
			continue
		}
		if fi, err := os.Stat(arg[:i]); err == nil && !fi.IsDir() {
			return arg[:i], arg[i+1:], true
		}
	}
	return arg, "", false
}

// source is what one argument of a verb names: a file, or a disk of a
// package.
type source struct {
	format diskFormat
	r      io.ReaderAt
	size   int64
	io.Closer
}

// openSource opens what path names and finds its format. The files that the
// image refers to stay closed.
func openSource(path, format string) (*source, error) {
	name, sel, inside := Split(path)
	f, size, err := openHost(os.OpenFile, name)
	if err != nil {
		return nil, err
	}
	p, err := packageOf(f, size, name, format, inside)
	if err != nil {
		f.Close()
		return nil, err
	}
	if p == nil {
		d, err := choose(f, size, format)
		if err != nil {
			f.Close()
			return nil, err
		}
		return &source{d, f, size, f}, nil
	}
	d, img, err := p.stored(sel, format)
	if err != nil {
		p.Close()
		return nil, err
	}
	return &source{d, img, img.Size(), p}, nil
}

// packageOf opens f as a package when it is to be one: a disk of it is asked
// for, or no format is declared and the content shows a package. Otherwise it
// returns nil.
func packageOf(f *os.File, size int64, path, format string, inside bool) (*Appliance, error) {
	if format != "" && !inside {
		return nil, nil
	}
	p, err := packageIn(f, size, path, nil)
	if err == nil && p == nil && inside {
		err = formats.Unknown("package", 0, "", "neither OVA, nor OVF descriptor, nor XVM: it has no disks to choose from")
	}
	return p, err
}
