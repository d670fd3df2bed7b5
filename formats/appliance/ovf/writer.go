package ovf

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/internal/tarindex"
)

// WriterOptions change what a Writer writes around the files. Nil means the
// defaults.
type WriterOptions struct {
	// Algorithm of the manifest: SHA256 by default, SHA512, SHA384, or SHA1
	// for importers that know nothing else.
	Algorithm string
	// ModTime is the time of the members of an OVA; the zero Time is 1970.
	ModTime time.Time
	// Sign makes the .cert for a manifest, as with the function Sign. Without
	// it the package is not signed.
	Sign func(name string, mf []byte) (cert []byte, err error)
	// Files are the digests of the members to come, in their order, when they
	// are known before (see Package.Digests). Then the manifest and the
	// certificate follow the descriptor at once, as ovftool has them; without
	// Files they come last. Both orders are of the standard.
	Files []ManifestEntry
}

// A Writer writes a package: the descriptor, the files in the order of
// References, the manifest and the certificate. What it wrote is held against
// the descriptor in Close: members, sizes and order must agree. Same members
// and options, same bytes. A Writer is not safe for concurrent use; without a
// successful Close there is no valid package.
type Writer struct {
	name   string // of the descriptor
	opts   WriterOptions
	tar    *tarindex.Writer // nil for a folder
	at     io.WriterAt      // of an OVA whose descriptor can come late
	create func(name string) (io.WriteCloser, error)

	text     []byte // the descriptor
	reserved int64  // bytes kept for it in the OVA, -1 when none
	textOff  int64
	cur      *FileWriter
	written  []writtenFile
	seen     map[string]bool
	err      error
	sealed   bool // the manifest is written
	closed   bool
}

type writtenFile struct {
	ManifestEntry
	size int64
}

func newWriter(name string, opts *WriterOptions) (*Writer, error) {
	w := &Writer{name: name, reserved: -1, seen: map[string]bool{}}
	if opts != nil {
		w.opts = *opts
	}
	if w.opts.Algorithm == "" {
		w.opts.Algorithm = DefaultAlgorithm
	}
	if _, ok := algorithms[w.opts.Algorithm]; !ok {
		return nil, formats.Unsupported(Name, -1, "manifest", "algorithm %q", w.opts.Algorithm)
	}
	if path.Ext(name) != ".ovf" || path.Base(name) != name || len(name) < 5 || checkName(name) != nil {
		return nil, fmt.Errorf("%s: %q is not the name of a descriptor", Name, clip(name))
	}
	return w, nil
}

// checkName refuses names that cannot be members or be listed in a manifest.
func checkName(name string) error {
	if !fs.ValidPath(name) || name == "." || strings.ContainsAny(name, "\x00\r\n\\") || checkText("member", name) != nil {
		return fmt.Errorf("%s: member name %q", Name, clip(name))
	}
	return nil
}

// NewWriter returns a Writer of an OVA whose descriptor is called name, from
// front to back. WriteDescriptor comes first, and the size of every file must
// be known.
func NewWriter(w io.Writer, name string, opts *WriterOptions) (*Writer, error) {
	x, err := newWriter(name, opts)
	if err == nil {
		x.tar = tarindex.NewWriter(w, &tarindex.WriterOptions{ModTime: x.opts.ModTime})
	}
	return x, err
}

// NewWriterAt returns a Writer of an OVA to w, a new empty file. Sizes may be
// -1 until a file ends, and the descriptor, which needs the sizes, may come
// last: see ReserveDescriptor.
func NewWriterAt(w io.WriterAt, name string, opts *WriterOptions) (*Writer, error) {
	x, err := newWriter(name, opts)
	if err == nil {
		x.at = w
		x.tar = tarindex.NewWriterAt(w, &tarindex.WriterOptions{ModTime: x.opts.ModTime})
	}
	return x, err
}

// NewFolderWriter returns a Writer of a package in a folder. It makes files
// through create, whose names follow fs.ValidPath; the descriptor may come
// last.
func NewFolderWriter(create func(name string) (io.WriteCloser, error), name string, opts *WriterOptions) (*Writer, error) {
	x, err := newWriter(name, opts)
	if err == nil {
		x.create = create
	}
	return x, err
}

// fail keeps the first error: what follows it would make a wrong package.
func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}

// ReserveDescriptor keeps n bytes at the front of an OVA for a descriptor
// that is written later. One that is shorter is filled up with line ends,
// which XML allows after the root element. It is for a Writer of NewWriterAt.
func (w *Writer) ReserveDescriptor(n int64) error {
	switch {
	case w.err != nil:
		return w.err
	case w.at == nil || w.text != nil || w.reserved >= 0 || len(w.seen) > 0 || w.closed:
		return fmt.Errorf("%s: no place to reserve", Name)
	case n <= 0 || n > MaxDescriptor:
		return formats.Limit(Name, -1, "descriptor", "%d bytes", n)
	}
	e, err := w.tar.Create(w.name, n)
	if err != nil {
		return w.fail(err)
	}
	w.reserved, w.textOff = n, e.Offset()
	w.seen[w.name] = true
	blank := bytes.Repeat([]byte{'\n'}, 4096)
	for left := n; left > 0; {
		k, err := e.Write(blank[:min(left, int64(len(blank)))])
		if err != nil {
			return w.fail(err)
		}
		left -= int64(k)
	}
	return nil
}

// WriteDescriptor writes the descriptor. It is parsed first: one that we
// would refuse is not written.
func (w *Writer) WriteDescriptor(text []byte) error {
	if w.err != nil {
		return w.err
	}
	if w.text != nil || w.closed {
		return fmt.Errorf("%s: second descriptor", Name)
	}
	if err := w.endFile(); err != nil {
		return err
	}
	if _, err := Parse(text, &ParseOptions{AllowRequired: true}); err != nil {
		return err
	}
	text = bytes.Clone(text)
	switch {
	case w.tar == nil:
		if err := w.put(w.name, text); err != nil {
			return w.fail(err)
		}
	case w.reserved >= 0:
		if int64(len(text)) > w.reserved {
			return fmt.Errorf("%s: the descriptor needs %d bytes, %d were kept", Name, len(text), w.reserved)
		}
		text = append(text, bytes.Repeat([]byte{'\n'}, int(w.reserved)-len(text))...)
		if n, err := w.at.WriteAt(text, w.textOff); err != nil || n < len(text) {
			return w.fail(errors.Join(err, shortWrite(n, len(text))))
		}
	case len(w.written) > 0:
		return fmt.Errorf("%s: the descriptor of an OVA comes first", Name)
	default:
		if err := w.tar.WriteFile(w.name, text); err != nil {
			return w.fail(err)
		}
	}
	w.seen[w.name] = true
	w.text = text
	if w.tar != nil && w.reserved < 0 && len(w.opts.Files) > 0 {
		w.sealed = true
		return w.seal(w.opts.Files)
	}
	return nil
}

func shortWrite(n, want int) error {
	if n < want {
		return io.ErrShortWrite
	}
	return nil
}

// put writes a small file of a folder.
func (w *Writer) put(name string, b []byte) error {
	f, err := w.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// Create begins a file of size bytes; -1 leaves the size open, which an OVA
// needs NewWriterAt for. The file before it ends. Files come in the order of
// References.
func (w *Writer) Create(name string, size int64) (*FileWriter, error) {
	if err := w.endFile(); err != nil {
		return nil, err
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(w.name, ".ovf")
	switch {
	case w.closed:
		return nil, fmt.Errorf("%s: the package is closed", Name)
	case w.seen[name] || name == w.name || name == base+".mf" || name == base+".cert":
		return nil, fmt.Errorf("%s: two members are %q", Name, clip(name))
	case w.tar != nil && w.text == nil && w.reserved < 0:
		return nil, fmt.Errorf("%s: the descriptor of an OVA comes first", Name)
	}
	f := &FileWriter{w: w, name: name, size: size, hash: algorithms[w.opts.Algorithm].New()}
	var err error
	if w.tar != nil {
		f.entry, err = w.tar.Create(name, size)
	} else {
		f.file, err = w.create(name)
	}
	if err != nil {
		return nil, w.fail(err)
	}
	w.seen[name] = true
	w.cur = f
	return f, nil
}

// A FileWriter takes the bytes of one member. It ends with the next call of
// its Writer.
type FileWriter struct {
	w     *Writer
	name  string
	size  int64 // announced, or -1
	pos   int64 // written
	back  bool  // bytes that were hashed have been written again
	hash  hash.Hash
	entry *tarindex.Entry
	file  io.WriteCloser
}

// Write appends to the member.
func (f *FileWriter) Write(p []byte) (int, error) {
	if f.w.cur != f {
		return 0, fmt.Errorf("%s: write to %q after its end", Name, clip(f.name))
	}
	if f.size >= 0 && int64(len(p)) > f.size-f.pos {
		return 0, f.w.fail(fmt.Errorf("%s: %q is longer than the %d bytes announced", Name, clip(f.name), f.size))
	}
	var n int
	var err error
	if f.entry != nil {
		n, err = f.entry.Write(p)
	} else {
		n, err = f.file.Write(p)
	}
	f.hash.Write(p[:n])
	f.pos += int64(n)
	if err != nil {
		return n, f.w.fail(err)
	}
	return n, nil
}

// WriteAt writes at an offset, for writers of disks into an OVA of
// NewWriterAt. Bytes left out are zeros. Going back over bytes already
// written needs a destination that can also be read.
func (f *FileWriter) WriteAt(p []byte, off int64) (int, error) {
	if f.entry == nil || f.w.at == nil {
		return 0, fmt.Errorf("%s: %q is written front to back", Name, clip(f.name))
	}
	if f.w.cur != f {
		return 0, fmt.Errorf("%s: write to %q after its end", Name, clip(f.name))
	}
	if off < f.pos {
		if _, ok := f.w.at.(io.ReaderAt); !ok {
			return 0, fmt.Errorf("%s: write to %q at %d after %d: the package cannot be read back", Name, clip(f.name), off, f.pos)
		}
		f.back = true
	}
	n, err := f.entry.WriteAt(p, off)
	if !f.back && n > 0 {
		f.zeros(off - f.pos)
		f.hash.Write(p[:n])
	}
	f.pos = max(f.pos, off+int64(n))
	if err != nil {
		return n, f.w.fail(err)
	}
	return n, nil
}

// zeros hashes n zeros that were skipped.
func (f *FileWriter) zeros(n int64) {
	var z [4096]byte
	for n > 0 {
		k := min(n, int64(len(z)))
		f.hash.Write(z[:k])
		n -= k
	}
}

// endFile ends the current member.
func (w *Writer) endFile() error {
	if w.err != nil {
		return w.err
	}
	f := w.cur
	if f == nil {
		return nil
	}
	w.cur = nil
	if f.size >= 0 && f.pos != f.size {
		return w.fail(fmt.Errorf("%s: %q ended after %d of %d bytes", Name, clip(f.name), f.pos, f.size))
	}
	if f.file != nil {
		if err := f.file.Close(); err != nil {
			return w.fail(err)
		}
	}
	if f.back {
		f.hash.Reset()
		r := io.NewSectionReader(w.at.(io.ReaderAt), f.entry.Offset(), f.pos)
		if n, err := io.Copy(f.hash, r); err != nil || n != f.pos {
			return w.fail(fmt.Errorf("%s: reading %q back: %d of %d bytes: %w", Name, clip(f.name), n, f.pos, err))
		}
	}
	w.written = append(w.written, writtenFile{ManifestEntry{w.opts.Algorithm, f.name, hex.EncodeToString(f.hash.Sum(nil))}, f.pos})
	return nil
}

// WriteFile writes a file whose size is known. With a chunk size it is
// written in members of that size, named by ChunkName.
func (w *Writer) WriteFile(name string, r io.Reader, size, chunkSize int64) error {
	if chunkSize <= 0 {
		f, err := w.Create(name, size)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, r, size)
		return w.readError(name, err)
	}
	if size/chunkSize >= maxChunks {
		return formats.Limit(Name, -1, "File@chunkSize", "%d bytes in chunks of %d", size, chunkSize)
	}
	for i := 0; i == 0 || int64(i)*chunkSize < size; i++ {
		n := min(chunkSize, size-int64(i)*chunkSize)
		f, err := w.Create(ChunkName(name, i), n)
		if err != nil {
			return err
		}
		if _, err = io.CopyN(f, r, n); err != nil {
			return w.readError(name, err)
		}
	}
	return nil
}

// readError spoils the package when a file could not be copied whole.
func (w *Writer) readError(name string, err error) error {
	if err == nil {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return w.fail(fmt.Errorf("%s: %q: %w", Name, clip(name), err))
}

// seal writes the manifest of the descriptor and files, and the certificate.
func (w *Writer) seal(files []ManifestEntry) error {
	h := algorithms[w.opts.Algorithm].New()
	h.Write(w.text)
	m := &Manifest{Entries: append([]ManifestEntry{{w.opts.Algorithm, w.name, hex.EncodeToString(h.Sum(nil))}}, files...)}
	mf, err := m.Marshal()
	if err != nil {
		return w.fail(err)
	}
	base := strings.TrimSuffix(w.name, ".ovf")
	if err := w.writeSeal(base+".mf", mf); err != nil || w.opts.Sign == nil {
		return err
	}
	cert, err := w.opts.Sign(base+".mf", bytes.Clone(mf))
	if err != nil {
		return w.fail(err)
	}
	return w.writeSeal(base+".cert", cert)
}

func (w *Writer) writeSeal(name string, b []byte) error {
	var err error
	if w.tar != nil {
		err = w.tar.WriteFile(name, b)
	} else {
		err = w.put(name, b)
	}
	if err != nil {
		return w.fail(err)
	}
	return nil
}

// Close checks that the package is whole, writes the manifest and the
// certificate, and ends the tar. The underlying writer stays open.
func (w *Writer) Close() error {
	if w.closed {
		return w.err
	}
	if err := w.endFile(); err != nil {
		return err
	}
	if w.text == nil {
		return w.fail(fmt.Errorf("%s: a package without a descriptor", Name))
	}
	if err := w.check(); err != nil {
		return w.fail(err)
	}
	files := make([]ManifestEntry, len(w.written))
	for i, f := range w.written {
		files[i] = f.ManifestEntry
	}
	if len(w.opts.Files) > 0 && !slices.Equal(files, w.opts.Files) {
		return w.fail(fmt.Errorf("%s: the files are not those whose digests were given", Name))
	}
	if !w.sealed {
		if err := w.seal(files); err != nil {
			return err
		}
	}
	if w.tar != nil {
		if err := w.tar.Close(); err != nil {
			return w.fail(err)
		}
	}
	w.closed = true
	return nil
}

// check holds what was written against the descriptor.
func (w *Writer) check() error {
	env, err := Parse(w.text, &ParseOptions{AllowRequired: true})
	if err != nil {
		return err
	}
	at := 0
	hrefs := map[string]bool{}
	for i := range env.Files {
		f := &env.Files[i]
		literal, decoded := HrefName(f.Href)
		if literal == "" && decoded == "" {
			return fmt.Errorf("%s: file %q: %q is not within the package", Name, clip(f.ID), clip(f.Href))
		}
		if hrefs[f.Href] {
			continue // a second entry of one member
		}
		hrefs[f.Href] = true
		var total int64
		n := 0
		for ; at < len(w.written); at++ {
			x := w.written[at]
			if f.ChunkSize > 0 {
				if x.File != ChunkName(literal, n) && x.File != ChunkName(decoded, n) {
					break
				}
			} else if n > 0 || x.File != literal && x.File != decoded {
				break
			}
			total += x.size
			n++
		}
		switch {
		case n == 0:
			return fmt.Errorf("%s: file %q: %q was not written, or not in the order of References", Name, clip(f.ID), clip(f.Href))
		case f.Size >= 0 && f.Size != total && f.Compression == "":
			return fmt.Errorf("%s: file %q: %d bytes declared, %d written", Name, clip(f.ID), f.Size, total)
		}
	}
	if at < len(w.written) {
		return fmt.Errorf("%s: nothing refers to %q, or it is not in the order of References", Name, clip(w.written[at].File))
	}
	return nil
}

// Repack writes a package again with w, which is new: another descriptor
// (nil keeps it), the same files. It is how an OVA becomes a folder, a folder
// an OVA, and how an edited package gets a fresh manifest. The replace
// function gives other content for a file of References, by id; a nil reader
// keeps the file.
func (p *Package) Repack(w *Writer, text []byte, replace func(f *File) (io.Reader, error)) error {
	if text == nil {
		text = p.env.Bytes()
	}
	env, err := Parse(text, &ParseOptions{AllowRequired: true})
	if err != nil {
		return err
	}
	if err := w.WriteDescriptor(text); err != nil {
		return err
	}
	hrefs := map[string]bool{}
	for i := range env.Files {
		f := &env.Files[i]
		if hrefs[f.Href] {
			continue
		}
		hrefs[f.Href] = true
		if replace != nil {
			r, err := replace(f)
			if err != nil {
				return err
			}
			if r != nil {
				if f.Size < 0 {
					return fmt.Errorf("%s: file %q is replaced and has no size", Name, clip(f.ID))
				}
				if err := w.WriteFile(memberName(f), r, f.Size, f.ChunkSize); err != nil {
					return err
				}
				continue
			}
		}
		if err := p.copyFile(w, f); err != nil {
			return err
		}
	}
	return w.Close()
}

// memberName is the name we give the member of a file.
func memberName(f *File) string {
	literal, decoded := HrefName(f.Href)
	if decoded != "" {
		return decoded
	}
	return literal
}

// copyFile copies the members of a file; chunks stay as they are. Their names
// change only when the href has.
func (p *Package) copyFile(w *Writer, f *File) error {
	names := p.Members(f.ID)
	if len(names) == 0 {
		return formats.Corrupt(Name, f.off, "File@href", "%q is not in the package", clip(f.Href))
	}
	renamed := p.env.File(f.ID).Href != f.Href
	for k, name := range names {
		m := p.members[p.byName[name]]
		r, err := p.Open(name)
		if err != nil {
			return formats.At(Name, -1, clip(name), err)
		}
		switch {
		case renamed && f.ChunkSize > 0:
			name = ChunkName(memberName(f), k)
		case renamed:
			name = memberName(f)
		}
		err = w.WriteFile(name, r, m.size, 0)
		r.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
