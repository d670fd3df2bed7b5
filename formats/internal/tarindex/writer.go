package tarindex

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// WriterOptions change the headers of a Writer.
type WriterOptions struct {
	// ModTime is the time of every member. The zero Time is 1970.
	ModTime time.Time
}

// A Writer writes an archive: regular members with mode 0644, owner 0, one
// time for all. Headers are ustar; a size from 8 GiB on is base-256 under the
// GNU magic, and a name that does not fit ustar gets a pax header. A Writer
// is not safe for concurrent use. Without a successful Close the archive is
// not valid.
type Writer struct {
	w      io.Writer
	at     io.WriterAt // nil when w is given
	mtime  int64
	off    int64
	cur    *Entry
	names  map[string]bool
	nbytes int
	err    error // the first failure; the archive is spoilt
	closed bool
}

// NewWriter returns a Writer that writes to w from front to back. Every
// member's size must be given.
func NewWriter(w io.Writer, opts *WriterOptions) *Writer {
	return newWriter(&Writer{w: w}, opts)
}

// NewWriterAt returns a Writer to w, a new empty file. Sizes may be left open:
// the header is written again when the member ends.
func NewWriterAt(w io.WriterAt, opts *WriterOptions) *Writer {
	return newWriter(&Writer{at: w}, opts)
}

func newWriter(w *Writer, opts *WriterOptions) *Writer {
	w.names = map[string]bool{}
	if opts != nil && opts.ModTime.Unix() > 0 {
		w.mtime = min(opts.ModTime.Unix(), maxOctal)
	}
	return w
}

// An Entry takes the bytes of the member that is being written. It ends with
// the next Create, End or Close of its Writer.
type Entry struct {
	w      *Writer
	name   string
	header int64 // offset of the header block
	off    int64 // of the first byte
	size   int64 // announced, or -1
	pos    int64 // of the next Write, from off
	end    int64 // highest byte written, from off
}

// Offset is where the member's bytes begin in the archive.
func (e *Entry) Offset() int64 { return e.off }

// Size is the number of bytes from the first to the last one written.
func (e *Entry) Size() int64 { return e.end }

// Create begins a member of size bytes; -1 leaves the size open until the
// member ends, which only a Writer of NewWriterAt can do. The member before
// it ends, which is an error if bytes of it are missing.
func (w *Writer) Create(name string, size int64) (*Entry, error) {
	if err := w.finish(); err != nil {
		return nil, err
	}
	if why := checkName(name); why != "" {
		return nil, fmt.Errorf("tar: member name %.200q: %s", name, why)
	}
	switch {
	case w.names[name]:
		return nil, fmt.Errorf("tar: two members are %q", name)
	case len(w.names) >= maxMembers/2: // each may need an extended header
		return nil, fmt.Errorf("tar: more than %d members", maxMembers/2)
	case w.nbytes+2*len(name) > maxNames:
		return nil, fmt.Errorf("tar: more than %d bytes of names", maxNames)
	case size < 0 && w.at == nil:
		return nil, fmt.Errorf("tar: size of %q is not known", name)
	}
	if needsPax(name, size) {
		if err := w.writePax(name); err != nil {
			return nil, err
		}
	}
	e := &Entry{w: w, name: name, header: w.off, off: w.off + blockSize, size: size}
	b := headerBlock(name, '0', max(size, 0), w.mtime)
	if err := w.put(b[:], w.off); err != nil {
		return nil, err
	}
	w.off += blockSize
	w.names[name] = true
	w.nbytes += 2 * len(name)
	w.cur = e
	return e, nil
}

// WriteFile writes a member that is in memory.
func (w *Writer) WriteFile(name string, b []byte) error {
	e, err := w.Create(name, int64(len(b)))
	if err != nil {
		return err
	}
	if _, err := e.Write(b); err != nil {
		return err
	}
	return w.finish()
}

// End ends the member that is being written.
func (w *Writer) End() error { return w.finish() }

// Blocks is the number of bytes a member of n bytes takes behind its header.
func Blocks(n int64) int64 { return padded(n) }

// Replace gives a member that has ended other bytes, which must take as many
// blocks, in a Writer of NewWriterAt that is not closed.
func (w *Writer) Replace(e *Entry, b []byte) error {
	switch {
	case w.err != nil:
		return w.err
	case w.at == nil || e.w != w || w.cur == e || w.closed:
		return fmt.Errorf("tar: %q cannot be replaced", e.name)
	case padded(int64(len(b))) != padded(e.end):
		return fmt.Errorf("tar: %q had %d bytes, %d take other blocks", e.name, e.end, len(b))
	}
	h := headerBlock(e.name, '0', int64(len(b)), w.mtime)
	if err := w.put(h[:], e.header); err != nil {
		return err
	}
	e.size, e.end = int64(len(b)), int64(len(b))
	data := make([]byte, padded(e.end))
	copy(data, b)
	return w.put(data, e.off)
}

// Close ends the last member and writes the two zero blocks. The underlying
// writer stays open. The archive is padded to 10 KiB, as tars are.
func (w *Writer) Close() error {
	if w.closed {
		return w.err
	}
	if err := w.finish(); err != nil {
		return err
	}
	w.closed = true
	const record = 20 * blockSize
	n := 2 * int64(blockSize)
	n += (record - (w.off+n)%record) % record
	if err := w.put(make([]byte, n), w.off); err != nil {
		return err
	}
	w.off += n
	return nil
}

// Size is the number of bytes of the archive so far; after Close, of all.
func (w *Writer) Size() int64 { return w.off }

// Write appends to the member.
func (e *Entry) Write(p []byte) (int, error) {
	if err := e.writable(p, e.pos); err != nil {
		return 0, err
	}
	if err := e.w.put(p, e.off+e.pos); err != nil {
		return 0, err
	}
	e.pos += int64(len(p))
	e.end = max(e.end, e.pos)
	return len(p), nil
}

// WriteAt implements io.WriterAt within the member, for a Writer of
// NewWriterAt. Bytes never written are zeros.
func (e *Entry) WriteAt(p []byte, off int64) (int, error) {
	if e.w.at == nil {
		return 0, errors.New("tar: the archive is written front to back")
	}
	if off < 0 {
		return 0, fmt.Errorf("tar: write at negative offset %d", off)
	}
	if err := e.writable(p, off); err != nil {
		return 0, err
	}
	if err := e.w.put(p, e.off+off); err != nil {
		return 0, err
	}
	e.end = max(e.end, off+int64(len(p)))
	return len(p), nil
}

func (e *Entry) writable(p []byte, off int64) error {
	switch {
	case e.w.err != nil:
		return e.w.err
	case e.w.cur != e:
		return fmt.Errorf("tar: write to %q after its end", e.name)
	case e.size >= 0 && int64(len(p)) > e.size-off:
		return fmt.Errorf("tar: %q is longer than the %d bytes announced", e.name, e.size)
	}
	return nil
}

func (w *Writer) put(p []byte, off int64) error {
	if w.err != nil {
		return w.err
	}
	var n int
	if w.at != nil {
		n, w.err = w.at.WriteAt(p, off)
	} else {
		n, w.err = w.w.Write(p)
	}
	if w.err == nil && n < len(p) {
		w.err = io.ErrShortWrite
	}
	return w.err
}

// finish ends the current member.
func (w *Writer) finish() error {
	if w.err != nil {
		return w.err
	}
	if w.closed {
		return errors.New("tar: the archive is closed")
	}
	e := w.cur
	if e == nil {
		return nil
	}
	if e.size >= 0 && e.end != e.size {
		w.err = fmt.Errorf("tar: %q ended after %d of %d bytes", e.name, e.end, e.size)
		return w.err
	}
	if e.size < 0 && e.end > 0 {
		if e.end > maxOctal && len(e.name) > lenName && !needsPax(e.name, 0) {
			w.err = fmt.Errorf("tar: name of %d bytes for a member of unknown size", len(e.name))
			return w.err
		}
		b := headerBlock(e.name, '0', e.end, w.mtime)
		if err := w.put(b[:], e.header); err != nil {
			return err
		}
	}
	w.cur = nil
	w.off = e.off + e.end
	if pad := padded(e.end) - e.end; pad > 0 {
		if err := w.put(make([]byte, pad), w.off); err != nil {
			return err
		}
		w.off += pad
	}
	return nil
}

// needsPax reports whether name does not fit the header of a member of size
// bytes: under the GNU magic there is no prefix.
func needsPax(name string, size int64) bool {
	if len(name) <= lenName {
		return false
	}
	_, _, ok := splitName(name)
	return !ok || size > maxOctal
}

// splitName divides a name at a slash into the fields of ustar.
func splitName(name string) (prefix, rest string, ok bool) {
	if len(name) <= lenName {
		return "", name, true
	}
	for i := min(len(name)-2, lenPrefix); i >= len(name)-1-lenName && i > 0; i-- {
		if name[i] == '/' {
			return name[:i], name[i+1:], true
		}
	}
	return "", "", false
}

func (w *Writer) writePax(name string) error {
	// The record counts its own length.
	rec := " path=" + name + "\n"
	n := len(rec)
	for n != len(rec)+len(strconv.Itoa(n)) {
		n = len(rec) + len(strconv.Itoa(n))
	}
	rec = strconv.Itoa(n) + rec
	b := headerBlock("PaxHeaders/"+strconv.Itoa(len(w.names)), 'x', int64(n), w.mtime)
	data := append(b[:], rec...)
	data = append(data, make([]byte, padded(int64(n))-int64(n))...)
	if err := w.put(data, w.off); err != nil {
		return err
	}
	w.off += int64(len(data))
	return nil
}

// headerBlock is the header of a member. A name too long for it is cut: a pax
// header precedes.
func headerBlock(name string, typeflag byte, size, mtime int64) [blockSize]byte {
	var b [blockSize]byte
	prefix, rest, ok := splitName(name)
	if !ok || size > maxOctal && prefix != "" {
		prefix, rest = "", strings.ToValidUTF8(name[:lenName], "")
	}
	copy(b[offName:offName+lenName], rest)
	putOctal(b[offMode:offMode+lenNum], 0o644)
	putOctal(b[offUID:offUID+lenNum], 0)
	putOctal(b[offGID:offGID+lenNum], 0)
	putOctal(b[offMtime:offMtime+lenSize], mtime)
	b[offTypeflag] = typeflag
	if size > maxOctal {
		copy(b[offMagic:], magicGNU)
		b[offSize] = 0x80
		for i, v := offSize+lenSize-1, size; v > 0; i, v = i-1, v>>8 {
			b[i] = byte(v)
		}
	} else {
		copy(b[offMagic:], magicUstar)
		putOctal(b[offSize:offSize+lenSize], size)
		putOctal(b[offDevmajor:offDevmajor+lenNum], 0)
		putOctal(b[offDevminor:offDevminor+lenNum], 0)
		copy(b[offPrefix:offPrefix+lenPrefix], prefix)
	}
	putOctal(b[offChksum:offChksum+7], checksum(b[:]))
	b[offChksum+7] = ' '
	return b
}

// putOctal fills f with digits and a NUL.
func putOctal(f []byte, v int64) {
	f[len(f)-1] = 0
	for i := len(f) - 2; i >= 0; i-- {
		f[i] = '0' + byte(v&7)
		v >>= 3
	}
}
