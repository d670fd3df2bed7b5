package xvm

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"imgmaint/formats"
	"imgmaint/formats/internal/gzindex"
	"imgmaint/formats/internal/tarindex"
)

// Options change how a package is opened.
type Options struct {
	// MaxDisk bounds a disk that a gzip member inflates to, in bytes, where the
	// descriptor declares no size. 0 is 64 TiB.
	MaxDisk int64
}

// A Package is an opened XVM file. It is an fs.FS of its members. All methods
// are safe for concurrent use if the reader is.
type Package struct {
	// Boot and Features are what an XVM 2 descriptor says of them.
	Boot     string
	Features []string

	archive    *tarindex.Archive
	format     string // Name or Name2
	doc        *Document
	desc       formats.Descriptor
	descriptor []byte // bytes of the descriptor
	lists      []*list
	sigs       []Signature
	maxDisk    int64

	mu      sync.Mutex
	indices map[string]*gzindex.Image // by member
	gzips   int                       // disks in gzip
}

var _ formats.Package = (*Package)(nil)

// Sniff reports whether a file begins as a package does: head is its first
// 512 bytes or more. Open looks at all of it.
func Sniff(head []byte) bool { return tarindex.Sniff(head) }

// Open reads the headers, the descriptor, the lists of checksums and the
// signatures of r, a package of size bytes. Nothing is verified yet. A tar
// without a descriptor of XVM 1 or 2 is ErrUnknown.
func Open(r io.ReaderAt, size int64, opts *Options) (*Package, error) {
	if opts == nil {
		opts = &Options{}
	}
	a, err := tarindex.Open(r, size, &tarindex.Options{Format: Name, DropSlash: true})
	if err != nil {
		return nil, err
	}
	p := &Package{archive: a, maxDisk: opts.MaxDisk, indices: map[string]*gzindex.Image{}}
	_, one := a.Member(DescriptorName)
	_, two := a.Member(Descriptor2Name)
	switch {
	case one && two:
		return nil, formats.Corrupt(Name, -1, "descriptor", "both %s and %s", DescriptorName, Descriptor2Name)
	case one:
		p.format, p.desc.Version = Name, "1"
	case two:
		p.format, p.desc.Version = Name2, "2"
	default:
		return nil, formats.Unknown(Name, -1, "", "a tar without %s or %s", DescriptorName, Descriptor2Name)
	}
	p.desc.Format = p.format
	for _, m := range a.Members() {
		// Archipel's writer puts a slash before the name, not a path.
		if strings.HasPrefix(m.Stored, "/") && (one || strings.Contains(m.Name, "/")) {
			return nil, formats.Corrupt(p.format, m.Header, "name", "absolute: %.200q", m.Stored)
		}
	}
	for _, n := range a.Notes() {
		p.problem("%s", n)
	}
	if err := p.readDescriptor(); err != nil {
		return nil, err
	}
	if err := p.readLists(); err != nil {
		return nil, err
	}
	p.desc.Members = make([]formats.Member, 0, len(a.Members()))
	for _, m := range a.Members() {
		p.desc.Members = append(p.desc.Members, formats.Member{Name: m.Name, Size: m.Size, Off: m.Off})
	}
	return p, nil
}

func (p *Package) problem(msg string, args ...any) {
	if len(p.desc.Problems) < maxProblems {
		p.desc.Problems = append(p.desc.Problems, fmt.Sprintf(msg, args...))
	}
}

// readMember reads a member of at most limit bytes; nil when there is none.
func (p *Package) readMember(name string, limit int64) ([]byte, error) {
	m, ok := p.archive.Member(name)
	if !ok {
		return nil, nil
	}
	if m.Size > limit {
		return nil, formats.Limit(p.format, m.Off, name, "%d bytes, at most %d", m.Size, limit)
	}
	b := make([]byte, m.Size)
	if n, err := p.archive.OpenMember(m).ReadAt(b, 0); n < len(b) {
		return nil, formats.At(p.format, m.Off, name, err)
	}
	return b, nil
}

func (p *Package) readDescriptor() error {
	name := DescriptorName
	if p.format == Name2 {
		name = Descriptor2Name
	}
	var err error
	if p.descriptor, err = p.readMember(name, MaxDescriptor); err != nil {
		return err
	}
	root, err := parseTree(p.format, p.descriptor)
	if err != nil {
		return err
	}
	switch {
	case p.format == Name2:
		if err := p.domain(root); err != nil {
			return err
		}
	case ours(root):
		if p.doc, err = decodeDocument(root); err != nil {
			return err
		}
		return p.document()
	default:
		p.describe(root)
	}
	return p.unmentioned()
}

// document takes over our own descriptor, and holds it against the members.
func (p *Package) document() error {
	d := p.doc
	p.desc.Name, p.desc.Description, p.desc.Machines = d.Name, d.Description, d.Machines
	p.desc.Disks = append(p.desc.Disks, d.Disks...)
	declared := map[string]bool{}
	need := func(field, name string) error {
		m, ok := p.archive.Member(name)
		if !ok {
			return formats.Corrupt(Name, -1, field, "member %q is missing", name)
		}
		declared[m.Name] = true
		return nil
	}
	for _, k := range d.Disks {
		if k.Member == "" {
			continue
		}
		if err := need("disk", k.Member); err != nil {
			return err
		}
		if m, _ := p.archive.Member(k.Member); k.Format == "raw" && k.Compression == "none" && m.Size != k.Size {
			return formats.Corrupt(Name, m.Off, "disk size", "%q is declared with %d bytes and has %d", k.ID, k.Size, m.Size)
		}
		if k.Compression == "gzip" {
			p.gzips++
		}
	}
	for _, s := range d.Documents {
		if err := need("document", s.Member); err != nil {
			return err
		}
	}
	for _, m := range p.archive.Members() {
		if !declared[m.Name] && (!reserved(m.Name) || m.Name == Descriptor2Name) {
			p.problem("member %q is not described", m.Name)
		}
	}
	return nil
}

// unmentioned makes disks of the members a foreign descriptor does not speak
// of, and finds out which disks are compressed.
func (p *Package) unmentioned() error {
	d := &p.desc
	known := map[string]bool{}
	for _, k := range d.Disks {
		known[k.Member] = true
	}
	for _, m := range p.archive.Members() {
		if known[m.Name] || reserved(m.Name) || p.format == Name2 && (isSnapshot(m.Name) || path.Ext(m.Name) == ".xml") {
			continue
		}
		p.problem("member %q is taken for a disk: the descriptor does not speak of it", m.Name)
		if len(d.Disks) == maxDisks {
			return formats.Limit(p.format, m.Header, "disk", "more than %d", maxDisks)
		}
		k := formats.PackageDisk{ID: m.Name, Member: m.Name}
		if p.format == Name2 {
			k.Role = "disk"
		}
		d.Disks = append(d.Disks, k)
	}
	if len(d.Disks) > maxDisks {
		return formats.Limit(p.format, -1, "disk", "more than %d", maxDisks)
	}
	for i := range d.Disks {
		k := &d.Disks[i]
		k.Compression = "none"
		m, _ := p.archive.Member(k.Member)
		var b [3]byte
		if m.Size < int64(len(b)) {
			continue
		}
		if n, err := p.archive.OpenMember(m).ReadAt(b[:], 0); n < len(b) {
			return formats.At(p.format, m.Off, m.Name, err)
		}
		if b == [3]byte{0x1f, 0x8b, 8} {
			k.Compression = "gzip"
			p.gzips++
		}
	}
	return nil
}

// Descriptor implements formats.Package. The result is shared: do not change
// it.
func (p *Package) Descriptor() *formats.Descriptor { return &p.desc }

// Document is the descriptor when it is one of this project, else nil.
func (p *Package) Document() *Document { return p.doc }

// DescriptorBytes are the bytes of xvm.xml or description.xml.
func (p *Package) DescriptorBytes() []byte { return bytes.Clone(p.descriptor) }

// Format is Name or Name2.
func (p *Package) Format() string { return p.format }

// Snapshots are the members that describe snapshots of an XVM 2 machine.
func (p *Package) Snapshots() []string {
	var names []string
	for _, m := range p.archive.Members() {
		if p.format == Name2 && isSnapshot(m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}

// Open implements fs.FS. A member implements formats.File.
func (p *Package) Open(name string) (fs.File, error) { return p.archive.Open(name) }

// Stat implements fs.StatFS.
func (p *Package) Stat(name string) (fs.FileInfo, error) { return p.archive.Stat(name) }

// ReadDir implements fs.ReadDirFS.
func (p *Package) ReadDir(name string) ([]fs.DirEntry, error) { return p.archive.ReadDir(name) }

// Close implements io.Closer; the reader stays open.
func (p *Package) Close() error { return nil }

// Disk finds a disk by id.
func (p *Package) Disk(id string) (formats.PackageDisk, bool) {
	for _, k := range p.desc.Disks {
		if k.ID == id {
			return k, true
		}
	}
	return formats.PackageDisk{}, false
}

// OpenDisk returns the bytes of a disk as its format stores them, without
// compression: the disk itself when the format is raw, else what the reader
// of that format opens. A disk in gzip is inflated once, when it is first
// opened, to check and index it; tee, when it is not nil, then receives what
// is inside, and is not called later. A disk without a member is
// errors.ErrUnsupported.
func (p *Package) OpenDisk(id string, tee io.Writer) (formats.Image, error) {
	k, ok := p.Disk(id)
	if !ok {
		return nil, formats.Corrupt(p.format, -1, "disk", "no disk %.200q", id)
	}
	if k.Member == "" {
		return nil, formats.Unsupported(p.format, -1, "disk", "%q starts empty", id)
	}
	m, _ := p.archive.Member(k.Member)
	f := p.archive.OpenMember(m)
	if k.Compression != "gzip" {
		return f, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if img := p.indices[m.Name]; img != nil {
		return img, nil
	}
	img, err := p.inflate(k, m, f, tee)
	if err != nil {
		return nil, err
	}
	p.indices[m.Name] = img
	return img, nil
}

// inflate indexes a member and holds the declared size against it.
func (p *Package) inflate(k formats.PackageDisk, m tarindex.Member, r io.ReaderAt, tee io.Writer) (*gzindex.Image, error) {
	limit := p.maxDisk
	exact := k.Format == "raw" && p.doc != nil
	if exact {
		limit = max(k.Size, 1)
	}
	img, err := gzindex.Open(r, m.Size, &gzindex.Options{Format: p.format + ": " + clip(m.Name), MaxSize: limit,
		Memory: indexMemory / int64(max(p.gzips, 1)), Tee: tee})
	if err != nil {
		return nil, err
	}
	if exact && img.Size() != k.Size {
		return nil, formats.Corrupt(p.format, m.Off, "disk size", "%q is declared with %d bytes and has %d", k.ID, k.Size, img.Size())
	}
	return img, nil
}
