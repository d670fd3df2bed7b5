package xvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"imgmaint/formats"
	"imgmaint/formats/internal/manifest"
	"imgmaint/formats/internal/tarindex"
)

// WriterOptions say how a package is written.
type WriterOptions struct {
	// ModTime is the time of every member; the zero Time is 1970.
	ModTime time.Time
	// Sign returns an armored detached signature over a message. It is called
	// four times: once when the package is begun, to learn how much room a
	// signature takes, and for manifest.txt, xvm.xml and manifest.sha256. Nil
	// leaves the package unsigned.
	Sign func(message []byte) ([]byte, error)
	// SignatureSize is the size of a signature in bytes, up to some 30 less or
	// more; when it is given, Sign is called three times.
	SignatureSize int
	// Level is the gzip level of WriteDisk; 0 is 6.
	Level int
	// Progress is called by WriteDisk after each block, with the bytes of that
	// disk done and all. An error of it ends the work and is returned.
	Progress func(done, total int64) error
}

// signatureSlack is by how many bytes signatures of one key may differ: the
// numbers in them have no leading zeros, and base 64 adds a third.
const signatureSlack = 32

// probe is what is signed to learn the size of a signature.
var probe = []byte("imgmaint: how much room does a signature take?\n")

// A Writer writes an XVM 1 package in one pass: room for the descriptor, the
// lists and the signatures is left at the front, where they belong, and filled
// when all digests are known. Memory does not depend on the size of disks. The
// bytes depend on the document, the members and the signatures alone. Without
// a successful Close the file is not valid. A Writer is not safe for
// concurrent use.
type Writer struct {
	opts  WriterOptions
	doc   Document
	tar   *tarindex.Writer
	seals map[string]*tarindex.Entry
	todo  []string // members still to be written, in order
	sums  []memberSum
	cur   *MemberWriter
	err   error
}

// memberSum are the digests of a member that is written.
type memberSum struct{ name, sha1, sha256 string }

// NewWriter begins a package in out, a new empty file. The document declares
// every member but the reserved ones; its disks in raw format need their Size.
// A SHA256 of a disk that is not known yet is left empty and given before
// Close, by WriteDisk or SetSHA256; one that is given is checked by WriteDisk.
func NewWriter(out io.WriterAt, doc *Document, opts *WriterOptions) (*Writer, error) {
	w := &Writer{seals: map[string]*tarindex.Entry{}}
	if opts != nil {
		w.opts = *opts
	}
	if w.opts.Level == 0 {
		w.opts.Level = 6
	}
	w.doc = *doc
	w.doc.Disks = slices.Clone(doc.Disks)
	w.tar = tarindex.NewWriterAt(out, &tarindex.WriterOptions{ModTime: w.opts.ModTime})
	for _, k := range w.doc.Disks {
		if k.Member != "" {
			w.todo = append(w.todo, k.Member)
		}
	}
	for _, s := range w.doc.Documents {
		w.todo = append(w.todo, s.Member)
	}
	if err := w.begin(); err != nil {
		return nil, err
	}
	return w, nil
}

// begin leaves room for the reserved members. Only signatures are not of known
// size.
func (w *Writer) begin() error {
	draft := w.doc
	draft.Disks = slices.Clone(w.doc.Disks)
	for i := range draft.Disks {
		if k := &draft.Disks[i]; k.Member != "" && k.SHA256 == "" {
			k.SHA256 = strings.Repeat("0", 64)
		}
	}
	text, err := draft.Marshal()
	if err != nil {
		return err
	}
	sigSize := 0
	if w.opts.Sign != nil {
		if sigSize = w.opts.SignatureSize; sigSize == 0 {
			sig, err := w.sign(probe)
			if err != nil {
				return err
			}
			sigSize = len(sig)
		}
		if sigSize <= 0 || sigSize > maxSignature {
			return formats.Limit(Name, -1, "signature", "%d bytes, at most %d", sigSize, maxSignature)
		}
		sigSize += signatureSlack
	}
	line := func(name string, digits int) int { return digits + 2 + len(name) + 1 }
	one, two := line(DescriptorName, 40), line(DescriptorName, 64)+line(ManifestName, 64)
	for _, name := range w.todo {
		if strings.Contains(name, `\`) {
			return formats.Unsupported(Name, -1, "member", "backslash in %q", name)
		}
		one, two = one+line(name, 40), two+line(name, 64)
	}
	if two > manifest.MaxSize {
		return formats.Limit(Name, -1, Manifest256Name, "%d bytes, at most %d", two, manifest.MaxSize)
	}
	for _, m := range []struct {
		name string
		size int
	}{{DescriptorName, len(text)}, {ManifestName, one}, {ManifestSigName, sigSize}, {SignatureName, sigSize},
		{Manifest256Name, two}, {Signature256, sigSize}} {
		if m.size == 0 {
			continue
		}
		e, err := w.tar.Create(m.name, int64(m.size))
		if err != nil {
			return err
		}
		if _, err := io.CopyN(e, zeroes{}, int64(m.size)); err != nil {
			return err
		}
		w.seals[m.name] = e
	}
	return w.tar.End()
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (w *Writer) sign(message []byte) ([]byte, error) {
	sig, err := w.opts.Sign(message)
	if err != nil {
		return nil, err
	}
	if sig = bareOf(sig); !bareArmor(sig) {
		return nil, errors.New("xvm: what was signed is not one armored signature")
	}
	return sig, nil
}

// bareOf takes the header lines out of an armored signature: no signature
// covers them.
func bareOf(sig []byte) []byte {
	sig = bytes.ReplaceAll(sig, []byte("\r\n"), []byte{'\n'})
	head, body, ok := bytes.Cut(sig, []byte("\n\n"))
	if !ok || !bytes.HasPrefix(head, []byte(sigBegin+"\n")) && string(head) != sigBegin {
		return sig
	}
	return append([]byte(sigBegin+"\n\n"), body...)
}

// A MemberWriter takes the stored bytes of one member.
type MemberWriter struct {
	w    *Writer
	name string
	e    *tarindex.Entry
	d    *manifest.Digester
}

// Write appends to the member.
func (m *MemberWriter) Write(p []byte) (int, error) {
	if m.w.err != nil {
		return 0, m.w.err
	}
	if m.w.cur != m {
		return 0, fmt.Errorf("xvm: write to %q after its end", m.name)
	}
	n, err := m.e.Write(p)
	m.d.Write(p[:n])
	return n, err
}

// Create begins the next member of the document, disks before side-cars, each
// in the order declared. What is written are the stored bytes: a gzip file
// where the compression is gzip. The member ends with the next Create,
// WriteDisk or Close.
func (w *Writer) Create(member string) (*MemberWriter, error) {
	if err := w.endMember(); err != nil {
		return nil, err
	}
	if len(w.todo) == 0 || w.todo[0] != member {
		next := "the end"
		if len(w.todo) > 0 {
			next = w.todo[0]
		}
		return nil, fmt.Errorf("xvm: %q is written where %q belongs", member, next)
	}
	w.todo = w.todo[1:]
	e, err := w.tar.Create(member, -1)
	if err != nil {
		w.err = err
		return nil, err
	}
	w.cur = &MemberWriter{w, member, e, manifest.NewDigester(manifest.SHA1, manifest.SHA256)}
	return w.cur, nil
}

func (w *Writer) endMember() error {
	if w.err != nil {
		return w.err
	}
	if m := w.cur; m != nil {
		w.sums = append(w.sums, memberSum{m.name, m.d.Sum(manifest.SHA1), m.d.Sum(manifest.SHA256)})
		w.cur = nil
	}
	return nil
}

// SetSHA256 declares the digest of a disk as the guest sees it, for disks
// written through Create.
func (w *Writer) SetSHA256(id, sum string) error {
	i := slices.IndexFunc(w.doc.Disks, func(k formats.PackageDisk) bool { return k.ID == id })
	switch {
	case i < 0 || w.doc.Disks[i].Member == "" || !digest256(sum):
		return fmt.Errorf("xvm: digest %.80q of disk %q", sum, id)
	case w.doc.Disks[i].SHA256 != "" && w.doc.Disks[i].SHA256 != sum:
		return formats.Corrupt(Name, -1, "disk sha256", "%q is declared with %s and has %s", id, w.doc.Disks[i].SHA256, sum)
	}
	w.doc.Disks[i].SHA256 = sum
	return nil
}

// WriteDisk writes the next member: the raw disk id with the content of img,
// in gzip where the document says so, and its digest.
func (w *Writer) WriteDisk(id string, img formats.Image) error {
	i := slices.IndexFunc(w.doc.Disks, func(k formats.PackageDisk) bool { return k.ID == id })
	if i < 0 {
		return fmt.Errorf("xvm: no disk %q", id)
	}
	k := w.doc.Disks[i]
	if k.Format != "raw" || k.Size != img.Size() {
		return fmt.Errorf("xvm: disk %q is declared %s of %d bytes, the image has %d", id, k.Format, k.Size, img.Size())
	}
	m, err := w.Create(k.Member)
	if err != nil {
		return err
	}
	d := manifest.NewDigester(manifest.SHA256)
	if err := w.copyDisk(m, d, k, img); err != nil {
		w.err = err
		return err
	}
	return w.SetSHA256(id, d.Sum(manifest.SHA256))
}

func (w *Writer) copyDisk(m io.Writer, d io.Writer, k formats.PackageDisk, img formats.Image) error {
	out := m
	var z *gzip.Writer
	if k.Compression == "gzip" {
		var err error
		if z, err = gzip.NewWriterLevel(m, w.opts.Level); err != nil {
			return err
		}
		out = z
	}
	buf := make([]byte, copyBlock)
	for e, err := range formats.Merged(img, 0) {
		if err != nil {
			return err
		}
		if e.Kind != formats.Data {
			clear(buf)
		}
		for off := e.Off; off < e.End(); {
			b := buf[:min(copyBlock, e.End()-off)]
			if e.Kind == formats.Data {
				if n, err := img.ReadAt(b, off); n < len(b) {
					return formats.At(Name, off, "disk", err)
				}
			}
			d.Write(b)
			if _, err := out.Write(b); err != nil {
				return err
			}
			off += int64(len(b))
			if w.opts.Progress != nil {
				if err := w.opts.Progress(off, k.Size); err != nil {
					return err
				}
			}
		}
	}
	if z != nil {
		return z.Close()
	}
	return nil
}

// Close writes the descriptor, the lists and the signatures, and ends the
// archive. The underlying writer stays open.
func (w *Writer) Close() error {
	if err := w.endMember(); err != nil {
		return err
	}
	if err := w.close(); err != nil {
		w.err = err
		return err
	}
	w.err = errors.New("xvm: the package is closed")
	return nil
}

func (w *Writer) close() error {
	if len(w.todo) > 0 {
		return fmt.Errorf("xvm: member %q was not written", w.todo[0])
	}
	for _, k := range w.doc.Disks {
		if k.Member != "" && k.SHA256 == "" {
			return fmt.Errorf("xvm: disk %q has no digest", k.ID)
		}
	}
	text, err := w.doc.Marshal()
	if err != nil {
		return err
	}
	sums := append([]memberSum{sumOf(DescriptorName, text)}, w.sums...)
	list := func(alg manifest.Algorithm, sums []memberSum) ([]byte, error) {
		var entries []manifest.Entry
		for _, s := range sums {
			e := manifest.Entry{Name: s.name, Algorithm: alg, Digest: s.sha256, Size: -1, Form: manifest.GNU}
			if alg == manifest.SHA1 {
				e.Digest = s.sha1
			}
			entries = append(entries, e)
		}
		return manifest.Render(entries)
	}
	one, err := list(manifest.SHA1, sums)
	if err != nil {
		return err
	}
	two, err := list(manifest.SHA256, slices.Insert(sums, 1, sumOf(ManifestName, one)))
	if err != nil {
		return err
	}
	for _, m := range []struct {
		name, sig string
		b         []byte
	}{{ManifestName, ManifestSigName, one}, {DescriptorName, SignatureName, text}, {Manifest256Name, Signature256, two}} {
		if err := w.tar.Replace(w.seals[m.name], m.b); err != nil {
			return err
		}
		if w.opts.Sign == nil {
			continue
		}
		sig, err := w.sign(m.b)
		if err != nil {
			return err
		}
		if sig, err = fit(sig, w.seals[m.sig].Size()); err != nil {
			return err
		}
		if err := w.tar.Replace(w.seals[m.sig], sig); err != nil {
			return err
		}
	}
	return w.tar.Close()
}

// fit adds line feeds to a signature that would take fewer blocks than were
// left for it.
func fit(sig []byte, room int64) ([]byte, error) {
	blocks := tarindex.Blocks(room)
	if tarindex.Blocks(int64(len(sig))) > blocks {
		return nil, fmt.Errorf("xvm: a signature has %d bytes, and room for %d was left", len(sig), blocks)
	}
	for tarindex.Blocks(int64(len(sig))) < blocks {
		sig = append(sig, '\n')
	}
	return bytes.Clone(sig), nil
}

func sumOf(name string, b []byte) memberSum {
	d := manifest.NewDigester(manifest.SHA1, manifest.SHA256)
	d.Write(b)
	return memberSum{name, d.Sum(manifest.SHA1), d.Sum(manifest.SHA256)}
}

// Size is the number of bytes of the package so far; after Close, of all.
func (w *Writer) Size() int64 { return w.tar.Size() }
