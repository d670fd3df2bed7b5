package vhd

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
	"time"

	"imgmaint/formats"
)

// Subformats of a new disk.
const (
	Dynamic = "dynamic"
	Fixed   = "fixed"
)

// Block sizes of new dynamic disks, in bytes: what Microsoft's programs write.
const (
	defaultBlockSize = 2 << 20
	smallBlockSize   = 512 << 10
)

// azureUnit is what the size of a disk for Azure must be a multiple of.
const azureUnit = 1 << 20

// dataAlign is the alignment of the data of blocks in the file, as Windows 8
// and later keep it for disks with sectors of 4 KiB.
const dataAlign = 4096

// WriterOptions say what NewWriter writes. The zero value is a dynamic disk
// with blocks of 2 MiB.
type WriterOptions struct {
	Subformat string // Dynamic or Fixed; "" is Dynamic, with Azure Fixed
	// BlockSize of a dynamic disk: 512 KiB or 2 MiB; 0 is 2 MiB.
	BlockSize int64
	// Azure makes what Azure takes for upload: a fixed disk whose size is a
	// multiple of 1 MiB, rounded up.
	Azure bool
	// UniqueID of the disk. All zeros: one derived from what is written.
	UniqueID [16]byte
	// Time is the time stamp, in whole seconds from 2000 to 2136; times
	// outside are cut to that.
	Time time.Time
	// Parent makes a differencing disk.
	Parent *Parent
}

// A Parent is what a differencing disk is written over.
type Parent struct {
	// Name is the path of the parent relative to the folder of the child,
	// with slashes.
	Name string
	// Absolute is the full path on Windows, for programs that want one; may
	// be empty.
	Absolute string
	// UniqueID and Time are those of the parent's footer and file. All zeros:
	// UniqueID is that of Image.
	UniqueID [16]byte
	Time     time.Time
	// Image is the parent's disk. It is read where a write covers a part of
	// a sector; nil allows writes of whole sectors only.
	Image formats.Image
}

// A Writer writes a VHD. The sectors of a dynamic disk that were written are
// marked in its bitmaps, blocks without any are not allocated.
//
// The creator is "win ", Hyper-V's: Hyper-V, Azure, VirtualBox and Xen read
// the exact size whoever the creator is, but older releases of qemu take the
// geometry, which seldom fits, for creators they do not know; this one all of
// them know. With it the geometry can be the specification's, where qemu's own
// creator "qem2" goes with the largest one.
type Writer struct {
	w      io.WriterAt
	o      WriterOptions
	size   int64 // as asked for
	disk   int64 // as the footer says: size rounded up
	end    int64 // of the last write
	sum    fingerprint
	err    error // of the underlying writer, for good
	closed bool

	// Of a dynamic disk:
	head  header
	bat   []uint32
	block int64  // that is being written, or -1
	bits  []byte // its sector bitmap
	next  int64  // where in the file the next block's bitmap goes
	align int64  // of the data of a block in the file

	part    []byte // the sector at partOff, where a write may have ended within
	partOff int64  // or -1
}

var _ formats.Writer = (*Writer)(nil)

// NewWriter returns a writer of a disk of size bytes to w, a new empty file.
// A VHD has whole sectors: the disk is rounded up to 512 bytes (to 1 MiB with
// Azure), and what is added reads as zeros. Over 2040 GiB is
// formats.ErrLimit (32,767 GiB with Azure).
func NewWriter(w io.WriterAt, size int64, opts *WriterOptions) (*Writer, error) {
	if opts == nil {
		opts = new(WriterOptions)
	}
	v := &Writer{w: w, o: *opts, size: size, block: -1, partOff: -1, sum: fingerprint{start: -1}}
	if err := v.o.complete(); err != nil {
		return nil, err
	}
	unit, most := int64(sectorSize), int64(maxDynamicSize)
	if v.o.Azure {
		unit, most = azureUnit, maxAzureSize
	}
	if size < 0 {
		return nil, fmt.Errorf("vhd: size of %d bytes", size)
	}
	if size > most {
		return nil, formats.Limit(Name, -1, "current_size", "%d bytes, at most %d", size, most)
	}
	v.disk = alignUp(size, unit)
	if v.o.Subformat == Fixed {
		return v, nil
	}
	bs := v.o.BlockSize
	v.bat = make([]uint32, (v.disk+bs-1)/bs)
	for i := range v.bat {
		v.bat[i] = unusedEntry
	}
	v.bits = make([]byte, bitmapSize(bs))
	v.head = header{
		tableOffset:     footerSize + headerSize,
		version:         formatVersion,
		maxTableEntries: uint32(len(v.bat)),
		blockSize:       uint32(bs),
	}
	end := alignUp(footerSize+headerSize+4*int64(len(v.bat)), sectorSize)
	if v.o.Parent != nil {
		v.part = make([]byte, sectorSize)
		for _, l := range v.o.Parent.locators() {
			end = alignUp(end+int64(len(l.data)), sectorSize)
		}
	}
	// Near 2040 GiB, small blocks leave no room for alignment below the last
	// sector number that 32 bits hold.
	v.align = dataAlign
	if span := alignUp(bs+int64(len(v.bits)), dataAlign); end+dataAlign+span*int64(len(v.bat)) > math.MaxUint32*sectorSize {
		v.align = sectorSize
	}
	v.next = v.place(end)
	return v, nil
}

// complete fills in the defaults and refuses what does not go together.
func (o *WriterOptions) complete() error {
	if o.Subformat == "" {
		o.Subformat = Dynamic
		if o.Azure {
			o.Subformat = Fixed
		}
	}
	if o.BlockSize == 0 {
		o.BlockSize = defaultBlockSize
	}
	switch {
	case o.Subformat != Dynamic && o.Subformat != Fixed:
		return formats.Unsupported(Name, -1, "subformat", "%q", o.Subformat)
	case o.Azure && o.Subformat != Fixed:
		return formats.Unsupported(Name, -1, "subformat", "%q: Azure takes fixed disks only", o.Subformat)
	case o.BlockSize != defaultBlockSize && o.BlockSize != smallBlockSize:
		return formats.Unsupported(Name, -1, "block_size", "%d: 524288 and 2097152 are written", o.BlockSize)
	case o.Parent == nil:
		return nil
	case o.Subformat == Fixed:
		return formats.Unsupported(Name, -1, "subformat", "a fixed disk has no parent")
	case o.Parent.Name == "":
		return errors.New("vhd: a parent without a name")
	}
	p := *o.Parent
	if img, ok := p.Image.(*Image); ok && p.UniqueID == [16]byte{} {
		p.UniqueID = img.UniqueID()
	}
	if p.UniqueID == [16]byte{} {
		return errors.New("vhd: a parent without a unique id")
	}
	for _, l := range p.locators() {
		if len(l.data) > maxLocator {
			return formats.Limit(Name, -1, "platform_data_length", "%d bytes, at most %d", len(l.data), maxLocator)
		}
	}
	o.Parent = &p
	return nil
}

// place returns where a bitmap goes that may not start before end: so that
// the data after it is aligned.
func (v *Writer) place(end int64) int64 {
	return alignUp(end+int64(len(v.bits)), v.align) - int64(len(v.bits))
}

// DiskSize is the size of the disk in bytes as its readers will see it.
func (v *Writer) DiskSize() int64 { return v.disk }

// WriteAt implements io.WriterAt. Offsets must ascend. Bytes pass to the file
// without being copied.
func (v *Writer) WriteAt(p []byte, off int64) (int, error) {
	switch {
	case v.err != nil:
		return 0, v.err
	case v.closed:
		return 0, errors.New("vhd: write after Close")
	case off < v.end || int64(len(p)) > v.size-off:
		return 0, fmt.Errorf("vhd: write of %d bytes at %d: written up to %d of %d", len(p), off, v.end, v.size)
	}
	n, err := v.write(p, off)
	v.err = err
	v.end = off + int64(n)
	return n, err
}

func (v *Writer) write(p []byte, off int64) (int, error) {
	if v.bat == nil {
		v.sum.add(p, off)
		return v.w.WriteAt(p, off)
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		q := p[n:min(int64(len(p)), int64(n)+v.o.BlockSize-at%v.o.BlockSize)]
		if v.part != nil {
			// Differencing: the part of a sector that is not written stays
			// the parent's.
			if in := at % sectorSize; in != 0 || len(q) < sectorSize {
				q = q[:min(int64(len(q)), sectorSize-in)]
				if err := v.writePart(q, at); err != nil {
					return n, err
				}
				n += len(q)
				continue
			}
			q = q[:len(q)/sectorSize*sectorSize]
		}
		if err := v.writeBlock(q, at); err != nil {
			return n, err
		}
		n += len(q)
	}
	return len(p), nil
}

// writePart writes less than a sector, completed from the parent.
func (v *Writer) writePart(p []byte, off int64) error {
	sector := off / sectorSize * sectorSize
	if v.partOff != sector {
		parent := v.o.Parent.Image
		if parent == nil {
			return fmt.Errorf("vhd: write of %d bytes at %d: a part of a sector needs the parent", len(p), off)
		}
		clear(v.part)
		if n := max(0, min(sectorSize, parent.Size()-sector)); n > 0 {
			if k, err := parent.ReadAt(v.part[:n], sector); int64(k) < n {
				return fmt.Errorf("vhd: parent at %d: %w", sector, errors.Join(err, io.ErrUnexpectedEOF))
			}
		}
		v.partOff = sector
	}
	copy(v.part[off-sector:], p)
	return v.writeBlock(v.part, sector)
}

// writeBlock writes p, which lies within one block, at off.
func (v *Writer) writeBlock(p []byte, off int64) error {
	bs := v.o.BlockSize
	if block := off / bs; block != v.block {
		if err := v.flushBitmap(); err != nil {
			return err
		}
		v.block = block
		v.bat[block] = uint32(v.next / sectorSize)
		v.next = v.place(v.next + int64(len(v.bits)) + bs)
	}
	v.sum.add(p, off)
	in := off % bs
	setBits(v.bits, in/sectorSize, (in+int64(len(p))+sectorSize-1)/sectorSize)
	_, err := v.w.WriteAt(p, int64(v.bat[v.block])*sectorSize+int64(len(v.bits))+in)
	return err
}

// setBits sets the bits from up to end, the most significant bit of a byte
// first.
func setBits(b []byte, from, end int64) {
	for from < end {
		if from%8 == 0 && end-from >= 8 {
			b[from/8] = 0xff
			from += 8
			continue
		}
		b[from/8] |= 0x80 >> (from % 8)
		from++
	}
}

// flushBitmap writes the bitmap of the block that is done.
func (v *Writer) flushBitmap() error {
	if v.block < 0 {
		return nil
	}
	_, err := v.w.WriteAt(v.bits, int64(v.bat[v.block])*sectorSize)
	clear(v.bits)
	return err
}

// Close writes what depends on all blocks: the BAT, the headers and the
// footer.
func (v *Writer) Close() error {
	if v.closed || v.err != nil {
		return v.err
	}
	v.closed = true
	v.err = v.finish()
	return v.err
}

func (v *Writer) finish() error {
	foot := footer{
		features:       featReserved,
		version:        formatVersion,
		dataOffset:     noOffset,
		timestamp:      seconds(v.o.Time),
		creatorApp:     [4]byte([]byte("win ")),
		creatorVersion: 0x000a0000, // 10.0
		creatorOS:      [4]byte([]byte("Wi2k")),
		originalSize:   uint64(v.disk),
		currentSize:    uint64(v.disk),
		diskType:       typeFixed,
		uniqueID:       v.o.UniqueID,
	}
	foot.cylinders, foot.heads, foot.sectors = geometry(v.disk / sectorSize)
	if v.bat != nil {
		foot.dataOffset, foot.diskType = footerSize, typeDynamic
		if v.o.Parent != nil {
			foot.diskType = typeDifferencing
		}
		if err := v.flushBitmap(); err != nil {
			return err
		}
	}
	if foot.uniqueID == [16]byte{} {
		foot.uniqueID = v.deriveID(foot.diskType)
	}
	if v.bat == nil {
		_, err := v.w.WriteAt(foot.marshal(), v.disk)
		return err
	}
	if _, err := v.w.WriteAt(foot.marshal(), 0); err != nil {
		return err
	}
	if err := v.writeHeader(); err != nil {
		return err
	}
	// In place of the next block's bitmap, so that the file ends aligned.
	_, err := v.w.WriteAt(foot.marshal(), v.next+int64(len(v.bits))-footerSize)
	return err
}

// writeHeader writes the dynamic disk header, the BAT and the parent locators.
func (v *Writer) writeHeader() error {
	h := &v.head
	type piece struct {
		b   []byte
		off int64
	}
	var tail []piece
	if p := v.o.Parent; p != nil {
		h.parentID = p.UniqueID
		h.parentTimestamp = seconds(p.Time)
		h.parentName = p.unicodeName()
		off := alignUp(int64(h.tableOffset)+4*int64(len(v.bat)), sectorSize)
		for i, l := range p.locators() {
			room := alignUp(int64(len(l.data)), sectorSize)
			h.locators[i] = locator{
				platform:   [4]byte([]byte(l.code)),
				dataSpace:  uint32(room),
				dataLength: uint32(len(l.data)),
				dataOffset: uint64(off),
			}
			b := make([]byte, room)
			copy(b, l.data)
			tail = append(tail, piece{b, off})
			off += room
		}
	}
	if _, err := v.w.WriteAt(h.marshal(), footerSize); err != nil {
		return err
	}
	buf := make([]byte, 0, batChunk)
	off := int64(h.tableOffset)
	flush := func() error {
		_, err := v.w.WriteAt(buf, off)
		off += int64(len(buf))
		buf = buf[:0]
		return err
	}
	for _, e := range v.bat {
		if buf = be.AppendUint32(buf, e); len(buf) == batChunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	for len(buf)%sectorSize != 0 {
		buf = append(buf, 0xff)
	}
	if len(buf) > 0 {
		if err := flush(); err != nil {
			return err
		}
	}
	for _, t := range tail {
		if _, err := v.w.WriteAt(t.b, t.off); err != nil {
			return err
		}
	}
	return nil
}

// deriveID makes a version 8 UUID (RFC 9562) of what was written and where.
func (v *Writer) deriveID(diskType uint32) [16]byte {
	h := sha256.New()
	fmt.Fprintf(h, "imgmaint vhd %d %d %d\n", diskType, v.disk, v.o.BlockSize)
	if p := v.o.Parent; p != nil {
		h.Write(p.UniqueID[:])
	}
	h.Write(v.sum.sum())
	id := [16]byte(h.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

type locatorData struct {
	code string
	data []byte
}

// locators are the names as the child stores them: for Windows, and for Xen's
// tools, which look for a file URL.
func (p *Parent) locators() []locatorData {
	win := strings.ReplaceAll(p.Name, "/", `\`)
	out := []locatorData{{"W2ru", encode16(`.\`+win, binary.LittleEndian)}}
	if p.Absolute != "" {
		out = append(out, locatorData{"W2ku", encode16(p.Absolute, binary.LittleEndian)})
	}
	return append(out, locatorData{"MacX", []byte("file://./" + escapeURL(p.Name))})
}

// unicodeName is parent_unicode_name: the absolute path where there is one,
// cut at 255 UTF-16 units.
func (p *Parent) unicodeName() []byte {
	name := p.Absolute
	if name == "" {
		name = p.Name
	}
	b := encode16(name, binary.BigEndian)
	return b[:min(len(b), 510)]
}

// escapeURL escapes what a path in a URL cannot hold.
func escapeURL(s string) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"#%<>?[\]^{|}`+"`", c) >= 0 {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// A fingerprint sums up what was written and where. It does not depend on how
// the writes were cut.
type fingerprint struct {
	start, end int64 // of the run at hand; start is -1 when there is none
	crc        uint32
	hash       [32]byte
}

// fingerprintRun bounds what one checksum stands for.
const fingerprintRun = 1 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// add takes note of p at off. A sector may be given again, completed.
func (f *fingerprint) add(p []byte, off int64) {
	for len(p) > 0 {
		if off != f.end || off%fingerprintRun == 0 || f.start < 0 {
			f.flush()
			f.start, f.end = off, off
		}
		n := min(int64(len(p)), fingerprintRun-off%fingerprintRun)
		f.crc = crc32.Update(f.crc, castagnoli, p[:n])
		p = p[n:]
		off += n
		f.end = off
	}
}

// flush chains the run at hand to the hash.
func (f *fingerprint) flush() {
	if f.start < 0 {
		return
	}
	b := append(make([]byte, 0, 64), f.hash[:]...)
	b = be.AppendUint64(b, uint64(f.start))
	b = be.AppendUint64(b, uint64(f.end))
	f.hash = sha256.Sum256(be.AppendUint32(b, f.crc))
	f.start, f.crc = -1, 0
}

func (f *fingerprint) sum() []byte {
	f.flush()
	return f.hash[:]
}
