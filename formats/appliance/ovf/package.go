package ovf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
	"imgmaint/formats/internal/tarindex"
)

var (
	_ formats.Package = (*Package)(nil)
	_ formats.Image   = (*Blob)(nil)
)

// Options change how a package is opened. Nil means the defaults.
type Options struct {
	ParseOptions
}

// A Role says what a member is to its package.
type Role string

const (
	RoleDescriptor  Role = "descriptor"
	RoleManifest    Role = "manifest"
	RoleCertificate Role = "certificate"
	RoleFile        Role = "file"  // of References, or one chunk of it
	RoleExtra       Role = "extra" // in the tar, and nothing refers to it
)

// A member is a file of the package.
type member struct {
	name string
	role Role
	size int64
	off  int64 // in the OVA, -1 in a folder
	file int   // index in Envelope.Files, -1 for none
}

// A Package is an opened appliance. It is an fs.FS of its members: in a
// folder, of those that belong to it. All methods are safe for concurrent use
// if the reader or file system is.
type Package struct {
	env      *Envelope
	name     string // of the descriptor
	members  []member
	byName   map[string]int
	parts    [][]string // members of each of env.Files, in order
	claims   int
	files    fs.FS
	archive  *tarindex.Archive // nil for a folder
	mf, cert []byte
	manifest *Manifest
	mfErr    error
	signed   *Certificate
	certErr  error
	findings findings
}

// readAll reads a member of at most limit bytes.
func readAll(fsys fs.FS, name, field string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, formats.At(Name, -1, field, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, formats.At(Name, -1, field, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, formats.Unsupported(Name, -1, field, "%q is not a regular file", clip(name))
	}
	if fi.Size() > limit {
		return nil, formats.Limit(Name, -1, field, "%d bytes, at most %d", fi.Size(), limit)
	}
	// The size is checked before it is trusted, and read no further.
	b := make([]byte, fi.Size())
	if n, err := io.ReadFull(f, b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, formats.Corrupt(Name, int64(n), field, "the file ended while it was read")
		}
		return nil, formats.At(Name, int64(n), field, err)
	}
	return b, nil
}

// Open opens a package that lies in a folder. The name is that of the
// descriptor; its directory holds the other members. Files outside of fsys
// and files the descriptor does not refer to are never opened.
func Open(fsys fs.FS, name string, opts *Options) (*Package, error) {
	if !fs.ValidPath(name) || name == "." {
		return nil, formats.Unknown(Name, -1, "", "%q is not the name of a descriptor", clip(name))
	}
	if dir := path.Dir(name); dir != "." {
		sub, err := fs.Sub(fsys, dir)
		if err != nil {
			return nil, formats.At(Name, -1, "descriptor", err)
		}
		fsys, name = sub, path.Base(name)
	}
	p := &Package{name: name, files: fsys, byName: map[string]int{}}
	if err := p.readDescriptor(opts); err != nil {
		return nil, err
	}
	stat := func(name string) (int64, bool, error) {
		fi, err := fs.Stat(fsys, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return 0, false, nil
		case err != nil:
			return 0, false, formats.At(Name, -1, clip(name), err)
		case !fi.Mode().IsRegular():
			return 0, false, formats.Unsupported(Name, -1, clip(name), "not a regular file")
		}
		return fi.Size(), true, nil
	}
	base := strings.TrimSuffix(name, path.Ext(name))
	for _, m := range []struct {
		name string
		role Role
	}{{name, RoleDescriptor}, {base + ".mf", RoleManifest}, {base + ".cert", RoleCertificate}} {
		size, ok, err := stat(m.name)
		if err != nil {
			return nil, err
		}
		if ok {
			p.add(member{m.name, m.role, size, -1, -1})
		}
	}
	if err := p.resolve(stat); err != nil {
		return nil, err
	}
	if err := p.readSeals(); err != nil {
		return nil, err
	}
	return p, nil
}

// OpenOVA opens a package that is one tar file of size bytes.
func OpenOVA(r io.ReaderAt, size int64, opts *Options) (*Package, error) {
	a, err := tarindex.Open(r, size, &tarindex.Options{Format: Name})
	if err != nil {
		return nil, err
	}
	p := &Package{archive: a, files: a, byName: map[string]int{}}
	for i, m := range a.Members() {
		if !strings.EqualFold(path.Ext(m.Name), ".ovf") {
			continue
		}
		if p.name != "" {
			return nil, formats.Corrupt(Name, m.Header, "descriptor", "a second one, %q beside %q", clip(m.Name), clip(p.name))
		}
		p.name = m.Name
		if i != 0 {
			p.findings.add(Fault, "order", -1, "the descriptor %q is member %d, not the first: importers refuse it", clip(m.Name), i+1)
		}
	}
	if p.name == "" {
		return nil, formats.Unknown(Name, -1, "", "a tar without a descriptor")
	}
	if err := p.readDescriptor(opts); err != nil {
		return nil, err
	}
	for _, n := range a.Notes() {
		p.findings.add(Warning, "tar", -1, "%s", n)
	}
	base := strings.TrimSuffix(p.name, path.Ext(p.name))
	for _, m := range a.Members() {
		x := member{m.Name, RoleExtra, m.Size, m.Off, -1}
		switch {
		case m.Name == p.name:
			x.role = RoleDescriptor
		case m.Name == base+".mf":
			x.role = RoleManifest
		case m.Name == base+".cert":
			x.role = RoleCertificate
		}
		p.add(x)
	}
	err = p.resolve(func(name string) (int64, bool, error) {
		m, ok := a.Member(name)
		return m.Size, ok, nil
	})
	if err != nil {
		return nil, err
	}
	p.order()
	if err := p.readSeals(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Package) add(m member) {
	p.byName[m.name] = len(p.members)
	p.members = append(p.members, m)
}

func (p *Package) readDescriptor(opts *Options) error {
	text, err := readAll(p.files, p.name, "descriptor", MaxDescriptor)
	if err != nil {
		return err
	}
	var po ParseOptions
	if opts != nil {
		po = opts.ParseOptions
	}
	p.env, err = Parse(text, &po)
	return err
}

// readSeals reads the manifest and the certificate. One that cannot be parsed
// is a state to report, not a reason to refuse the package.
func (p *Package) readSeals() error {
	for _, m := range p.members {
		var err error
		switch m.role {
		case RoleManifest:
			if p.mf, err = readAll(p.files, m.name, "manifest", maxManifest); err == nil {
				p.manifest, p.mfErr = ParseManifest(p.mf)
			}
		case RoleCertificate:
			if p.cert, err = readAll(p.files, m.name, "certificate", maxCert); err == nil {
				p.signed, p.certErr = ParseCert(p.cert)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// resolve finds the members of every file of References. What is missing is
// left for Validate to say.
func (p *Package) resolve(stat func(string) (int64, bool, error)) error {
	p.parts = make([][]string, len(p.env.Files))
	for i := range p.env.Files {
		f := &p.env.Files[i]
		literal, decoded := HrefName(f.Href)
		for _, name := range []string{literal, decoded} {
			if name == "" {
				continue
			}
			first := name
			if f.ChunkSize > 0 {
				first = ChunkName(name, 0)
			}
			size, ok, err := stat(first)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := p.claim(i, first, size); err != nil {
				return err
			}
			for k := 1; f.ChunkSize > 0; k++ {
				if k >= maxChunks {
					return formats.Limit(Name, f.off, "File@chunkSize", "more than %d chunks of %q", maxChunks, clip(name))
				}
				size, ok, err := stat(ChunkName(name, k))
				if err != nil {
					return err
				}
				if !ok {
					break
				}
				if err := p.claim(i, ChunkName(name, k), size); err != nil {
					return err
				}
			}
			break
		}
		if f.ChunkSize > 0 {
			p.checkChunks(i)
		}
	}
	return nil
}

// claim makes a member part of file i.
func (p *Package) claim(i int, name string, size int64) error {
	// Entries may share members, but not so often that a small descriptor
	// makes many of few.
	if p.claims++; p.claims > maxChunks+maxFiles {
		return formats.Limit(Name, p.env.Files[i].off, "References", "more than %d parts", maxChunks+maxFiles)
	}
	p.parts[i] = append(p.parts[i], name)
	k, ok := p.byName[name]
	if !ok {
		p.add(member{name, RoleFile, size, -1, i})
		return nil
	}
	switch m := &p.members[k]; m.role {
	case RoleExtra:
		m.role, m.file = RoleFile, i
	case RoleFile: // two entries of one href
	default:
		p.findings.add(Fault, "references", p.env.Files[i].off, "file %q is the %s", clip(p.env.Files[i].ID), m.role)
	}
	return nil
}

// checkChunks checks that every chunk but the last is of the chunk size, and
// that they are as many as the size of the file needs.
func (p *Package) checkChunks(i int) {
	f := &p.env.Files[i]
	for k, name := range p.parts[i] {
		n := p.members[p.byName[name]].size
		if last := k == len(p.parts[i])-1; n > f.ChunkSize || n < f.ChunkSize && !last || n == 0 && k > 0 {
			p.findings.add(Fault, "chunks", f.off, "chunk %q has %d bytes of %d", clip(name), n, f.ChunkSize)
		}
	}
}

// order checks the order of an OVA: descriptor; manifest and certificate;
// files as in References. The manifest and the certificate, side by side, may
// come last instead.
func (p *Package) order() {
	last := -1
	place := map[Role]int{}
	for k, m := range p.members {
		switch m.role {
		case RoleFile:
			if m.file < last {
				p.findings.add(Warning, "order", -1, "%q comes too late: files go as in References", clip(m.name))
			}
			last = max(last, m.file)
			continue
		case RoleExtra:
			p.findings.add(Warning, "extra", -1, "nothing refers to %q", clip(m.name))
		}
		place[m.role] = k
	}
	mf, hasMF := place[RoleManifest]
	cert, hasCert := place[RoleCertificate]
	if hasCert && !hasMF {
		p.findings.add(Fault, "certificate", -1, "a certificate without a manifest")
	}
	if hasCert && hasMF && cert != mf+1 {
		p.findings.add(Warning, "order", -1, "the certificate does not follow the manifest")
	}
	if end := len(p.members) - 1; hasMF && mf != 1 && mf != end && !(hasCert && cert == end && mf == end-1) {
		p.findings.add(Warning, "order", -1, "the manifest is neither next to the descriptor nor last")
	}
}

// Open implements fs.FS.
func (p *Package) Open(name string) (fs.File, error) {
	if p.archive != nil {
		return p.archive.Open(name)
	}
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	if _, ok := p.byName[name]; ok {
		return p.files.Open(name)
	}
	if name == "." || slices.ContainsFunc(p.members, func(m member) bool { return strings.HasPrefix(m.name, name+"/") }) {
		return newDir(p, name)
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// Close implements formats.Package. It does not close what was given to
// Open.
func (p *Package) Close() error { return nil }

// Envelope is the parsed descriptor.
func (p *Package) Envelope() *Envelope { return p.env }

// Name is the name of the descriptor member.
func (p *Package) Name() string { return p.name }

// Manifest is the parsed manifest; nil when there is none or the error says
// why it cannot be read.
func (p *Package) Manifest() (*Manifest, error) { return p.manifest, p.mfErr }

// Certificate is the parsed certificate; nil when there is none or the error
// says why it cannot be read.
func (p *Package) Certificate() (*Certificate, error) { return p.signed, p.certErr }

// Members returns the names of the members of a file: one, or its chunks in
// order; none when the file is not there.
func (p *Package) Members(fileID string) []string {
	for i := range p.env.Files {
		if p.env.Files[i].ID == fileID {
			return slices.Clone(p.parts[i])
		}
	}
	return nil
}

// fileSize is for ValidateOptions.
func (p *Package) fileSize(f *File) (stored, decoded int64, ok bool) {
	for i := range p.env.Files {
		if &p.env.Files[i] == f {
			for _, name := range p.parts[i] {
				stored += p.members[p.byName[name]].size
			}
			return stored, -1, len(p.parts[i]) > 0
		}
	}
	return 0, 0, false
}

// Check lists what is wrong with the package as far as it can be told
// without reading its files: rules of the descriptor, sizes, order. The
// virtual size of a disk comes from the caller, who knows disk formats; nil
// skips that rule.
func (p *Package) Check(virtualSize func(d *Disk) (int64, bool)) []Finding {
	opts := &ValidateOptions{FileSize: p.fileSize, VirtualSize: virtualSize}
	return append(p.env.Validate(opts), p.findings.done()...)
}

// A Blob is the stored bytes of one file of References: chunks are joined,
// compression is not undone. ReadAt is safe for concurrent use.
type Blob struct {
	parts  []io.ReaderAt
	ends   []int64 // of each part, from the start of the blob
	closes []io.Closer
}

// Size is the size in bytes.
func (b *Blob) Size() int64 { return b.ends[len(b.ends)-1] }

// Close closes the members.
func (b *Blob) Close() error {
	var errs []error
	for _, c := range b.closes {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// ReadAt implements io.ReaderAt. A member that has become shorter is corrupt.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at negative offset %d", Name, off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		i, _ := slices.BinarySearchFunc(b.ends, at, func(end, at int64) int {
			if end <= at {
				return -1
			}
			return 1
		})
		if i == len(b.ends) {
			return done, io.EOF
		}
		start := int64(0)
		if i > 0 {
			start = b.ends[i-1]
		}
		n := int(min(int64(len(p)-done), b.ends[i]-at))
		f := bounded.File{R: b.parts[i], Size: b.ends[i] - start, Format: Name}
		if err := f.ReadFull(p[done:done+n], at-start, "file"); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// ExtentAt implements formats.Image: one run of data.
func (b *Blob) ExtentAt(off int64) (formats.Extent, error) {
	if off < 0 || off >= b.Size() {
		return formats.Extent{}, io.EOF
	}
	return formats.Extent{Off: off, Len: b.Size() - off, Kind: formats.Data}, nil
}

// OpenFile opens the stored bytes of a file of References.
func (p *Package) OpenFile(fileID string) (*Blob, error) {
	f := p.env.File(fileID)
	names := p.Members(fileID)
	switch {
	case f == nil:
		return nil, notFound("file", fileID)
	case len(names) == 0:
		return nil, formats.Corrupt(Name, f.off, "File@href", "%q is not in the package", clip(f.Href))
	case p.encrypted(f):
		return nil, formats.Unsupported(Name, f.off, "EncryptionSection", "%q is encrypted", clip(f.Href))
	}
	b := &Blob{}
	for k, name := range names {
		m := p.members[p.byName[name]]
		if f.ChunkSize > 0 && k < len(names)-1 && m.size != f.ChunkSize {
			b.Close()
			return nil, formats.Corrupt(Name, f.off, "File@chunkSize", "%q has %d bytes of %d", clip(name), m.size, f.ChunkSize)
		}
		x, err := p.Open(name)
		if err != nil {
			b.Close()
			return nil, formats.At(Name, -1, clip(name), err)
		}
		b.closes = append(b.closes, x)
		r, ok := x.(io.ReaderAt)
		if !ok {
			b.Close()
			return nil, formats.Unsupported(Name, -1, clip(name), "not readable at offsets")
		}
		b.parts = append(b.parts, r)
		end := m.size
		if len(b.ends) > 0 {
			end += b.ends[len(b.ends)-1]
		}
		b.ends = append(b.ends, end)
	}
	return b, nil
}

// encrypted reports whether an EncryptionSection names the file.
func (p *Package) encrypted(f *File) bool {
	e := p.env.Encryption
	return e != nil && slices.ContainsFunc(e.References, func(uri string) bool { return uri == f.Href || strings.TrimPrefix(uri, "./") == f.Href })
}
