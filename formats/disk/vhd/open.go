package vhd

import (
	"bytes"
	"fmt"
	"io"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

// layout is the parsed and validated metadata of one file, the BAT excepted.
type layout struct {
	f        bounded.File
	foot     footer
	footRaw  []byte // the footer used, 512 bytes
	head     header // of a dynamic or differencing disk
	size     int64  // virtual size, bytes
	byCHS    bool   // size comes from the geometry
	end      int64  // end of what blocks and data may use: where the last footer starts
	parents  []parentName
	problems []formats.Finding
}

// A footerCopy is one of the places of the footer.
type footerCopy struct {
	b     []byte // 512 bytes; nil when the cookie is not there
	off   int64
	valid bool // the checksum is right
}

func (c footerCopy) found() bool { return c.b != nil }

// readFooter reads the footer at off, which has n bytes in the file.
func readFooter(f bounded.File, off int64, n int) (footerCopy, error) {
	b := make([]byte, footerSize)
	if err := f.ReadFull(b[:n], off, "footer"); err != nil {
		return footerCopy{}, err
	}
	if string(b[:8]) != footerCookie {
		return footerCopy{off: off}, nil
	}
	return footerCopy{b: b, off: off, valid: be.Uint32(b[footChecksum:]) == checksum(b, footChecksum)}, nil
}

// problem notes something wrong that does not keep the disk from being read.
func (l *layout) problem(off int64, field, msg string, args ...any) {
	l.problems = append(l.problems, formats.Finding{
		Severity: formats.Corruption, Off: off, Field: field, Detail: fmt.Sprintf(msg, args...)})
}

// parse reads the footer, and the header if there is one.
func parse(r io.ReaderAt, size int64, forceSize string) (*layout, error) {
	l := &layout{f: bounded.File{R: r, Size: size, Format: Name}}
	if size < oldFooterSize {
		return nil, formats.Unknown(Name, 0, "footer", "a file of %d bytes", size)
	}
	if err := l.chooseFooter(); err != nil {
		return nil, err
	}
	if major := l.foot.version >> 16; major != formatVersion>>16 {
		return nil, formats.Unsupported(Name, l.end+footVersion, "file_format_version", "%d.%d", major, l.foot.version&0xffff)
	}
	if err := l.chooseSize(forceSize); err != nil {
		return nil, err
	}
	switch l.foot.diskType {
	case typeFixed:
		if l.size > l.end {
			return nil, corrupt(l.end+footCurrentSize, "current_size", "a disk of %d bytes in a file that holds %d", l.size, l.end)
		}
		return l, nil
	case typeDynamic, typeDifferencing:
		return l, l.parseHeader()
	}
	return nil, formats.Unsupported(Name, l.end+footType, "disk_type", "%d", l.foot.diskType)
}

// chooseFooter finds the footer. The one at the end of the file is the
// primary one; dynamic and differencing disks have a copy at the start. The
// end decides first, because the start of a fixed disk belongs to the guest.
func (l *layout) chooseFooter() error {
	size := l.f.Size
	var last, first footerCopy
	var err error
	if size >= footerSize {
		if last, err = readFooter(l.f, size-footerSize, footerSize); err != nil {
			return err
		}
	}
	if !last.found() {
		if last, err = readFooter(l.f, size-oldFooterSize, oldFooterSize); err != nil {
			return err
		}
	}
	if size >= footerSize+headerSize {
		if first, err = readFooter(l.f, 0, footerSize); err != nil {
			return err
		}
	}
	l.end = size
	if last.found() {
		l.end = last.off
	}
	use := last
	switch {
	case last.valid && be.Uint32(last.b[footType:]) == typeFixed:
		if first.valid && be.Uint32(first.b[footType:]) != typeFixed {
			l.problem(0, "footer", "the first sector of this fixed disk is itself the footer of a VHD: some programs would open that one")
		}
	case last.valid && !first.found():
		l.problem(0, "footer", "the copy at the start is missing")
	case last.valid && !first.valid:
		l.problem(0, "footer", "the copy at the start has a wrong checksum")
	case last.valid && !bytes.Equal(first.b, last.b):
		l.problem(0, "footer", "the copy at the start differs from the footer")
	case last.valid:
	case first.valid && be.Uint32(first.b[footType:]) != typeFixed:
		use = first
		if last.found() {
			l.problem(last.off, "footer", "wrong checksum: the copy at the start is used")
		} else {
			l.problem(size, "footer", "missing at the end: the copy at the start is used")
		}
	case last.found() && first.found() && bytes.Equal(last.b, first.b):
		// Two equal copies with one wrong checksum were edited, not
		// damaged: equality says as much about them as the checksum would.
		l.problem(last.off+footChecksum, "checksum", "wrong, and the same in both copies of the footer")
	case last.found():
		return corrupt(last.off+footChecksum, "checksum", "%#x, want %#x, and no good copy at the start",
			be.Uint32(last.b[footChecksum:]), checksum(last.b, footChecksum))
	case first.found():
		return corrupt(footChecksum, "footer", "the copy at the start is not usable and there is none at the end")
	default:
		return formats.Unknown(Name, l.end, "cookie", "no footer")
	}
	l.footRaw = use.b
	l.foot = parseFooter(use.b)
	return nil
}

// chooseSize sets the virtual size: from the geometry where the creator means
// that, else from current_size.
func (l *layout) chooseSize(force string) error {
	chs := l.foot.chsSectors()
	l.byCHS = l.foot.usesGeometry()
	switch force {
	case "":
	case "chs":
		l.byCHS = true
	case "current":
		l.byCHS = false
	default:
		return fmt.Errorf("vhd: size rule %q: want chs or current", force)
	}
	const largest = maxCylinders * maxHeads * maxSectors
	if chs == largest || chs == 0 {
		l.byCHS = false
	}
	if l.byCHS {
		l.size = chs * sectorSize
		return nil
	}
	cur := l.foot.currentSize
	if l.foot.diskType != typeFixed && cur > maxDynamicSize || cur > 1<<62 {
		return formats.Limit(Name, l.end+footCurrentSize, "current_size", "%d bytes, at most %d", cur, int64(maxDynamicSize))
	}
	if cur%sectorSize != 0 {
		l.problem(l.end+footCurrentSize, "current_size", "%d is not a multiple of %d and is rounded down", cur, sectorSize)
	}
	l.size = int64(cur / sectorSize * sectorSize)
	return nil
}

// parseHeader reads and validates the dynamic disk header and the parent
// locators.
func (l *layout) parseHeader() error {
	off := l.foot.dataOffset
	if off%sectorSize != 0 || off < footerSize || off > uint64(l.f.Size) {
		return corrupt(footDataOffset, "data_offset", "%#x in a file of %d bytes", off, l.f.Size)
	}
	at := int64(off)
	b, err := l.f.Bytes(at, headerSize, "dynamic disk header", headerSize)
	if err != nil {
		return err
	}
	if string(b[:8]) != headerCookie {
		return corrupt(at, "cookie", "%q, want %q", b[:8], headerCookie)
	}
	l.head = parseHeader(b)
	h := &l.head
	if major := h.version >> 16; major != formatVersion>>16 {
		return formats.Unsupported(Name, at+headVersion, "header_version", "%d.%d", major, h.version&0xffff)
	}
	// There is no copy to fall back to, and qemu does not look: with every
	// field validated below, a wrong sum is told and not refused.
	if sum := checksum(b, headChecksum); sum != h.checksum {
		l.problem(at+headChecksum, "checksum", "of the dynamic disk header is %#x, want %#x", h.checksum, sum)
	}
	switch {
	case !isPowerOfTwo(h.blockSize) || h.blockSize < sectorSize:
		return corrupt(at+headBlockSize, "block_size", "%d is not a power of two of at least %d", h.blockSize, sectorSize)
	case h.blockSize > maxBlockSize:
		return formats.Limit(Name, at+headBlockSize, "block_size", "%d bytes, at most %d", h.blockSize, maxBlockSize)
	case h.maxTableEntries > maxTableEntries:
		return formats.Limit(Name, at+headMaxEntries, "max_table_entries", "%d, at most %d", h.maxTableEntries, maxTableEntries)
	case l.blocks() > int64(h.maxTableEntries):
		return corrupt(at+headMaxEntries, "max_table_entries", "%d, the disk has %d blocks", h.maxTableEntries, l.blocks())
	case h.tableOffset%sectorSize != 0 || h.tableOffset > uint64(l.f.Size):
		return corrupt(at+headTableOffset, "table_offset", "%#x in a file of %d bytes", h.tableOffset, l.f.Size)
	}
	if err := l.f.Check(int64(h.tableOffset), 4*int64(h.maxTableEntries), "BAT", 4*maxTableEntries); err != nil {
		return err
	}
	meta := l.fixedRegions()
	for i, a := range meta {
		for _, b := range meta[:i] {
			if a.overlaps(b) {
				return corrupt(a.off, a.name, "overlaps the %s", b.name)
			}
		}
	}
	if l.foot.diskType == typeDifferencing {
		return l.parseParent()
	}
	return nil
}

// A region is a part of the file that metadata uses.
type region struct {
	off, end int64
	name     string
}

func (a region) overlaps(b region) bool { return a.off < b.end && b.off < a.end }

// fixedRegions are the footer copy, the header and the BAT of a disk that has
// a header.
func (l *layout) fixedRegions() []region {
	at, bat := int64(l.foot.dataOffset), int64(l.head.tableOffset)
	return []region{
		{0, footerSize, "footer copy"},
		{at, at + headerSize, "dynamic disk header"},
		{bat, bat + 4*int64(l.head.maxTableEntries), "BAT"},
	}
}

// blocks is the number of blocks that make up the disk.
func (l *layout) blocks() int64 {
	bs := int64(l.head.blockSize)
	return (l.size + bs - 1) / bs
}

// checkEntry tells why the block at BAT entry e cannot be where it says; ""
// when it can.
func (l *layout) checkEntry(e uint32, meta []region) string {
	off := int64(e) * sectorSize
	blk := region{off: off, end: off + bitmapSize(int64(l.head.blockSize)) + int64(l.head.blockSize)}
	if blk.end > l.end {
		return fmt.Sprintf("the block at %#x ends at %#x, after the end of the data at %#x", off, blk.end, l.end)
	}
	for _, m := range meta {
		if blk.overlaps(m) {
			return fmt.Sprintf("the block at %#x overlaps the %s", off, m.name)
		}
	}
	return ""
}

// metaRegions are all regions no block may use.
func (l *layout) metaRegions() []region {
	meta := l.fixedRegions()
	for _, p := range l.parents {
		if p.end > p.off {
			meta = append(meta, region{p.off, p.end, "parent locator"})
		}
	}
	return meta
}

// batChunk is how much of the BAT is read at once.
const batChunk = 64 << 10

// eachEntry reads count entries of the BAT from the first and calls do with
// each that is in use.
func (l *layout) eachEntry(count int64, do func(i int64, e uint32) error) error {
	buf := make([]byte, min(batChunk, 4*count))
	for i := int64(0); i < count; {
		p := buf[:min(int64(len(buf)), 4*(count-i))]
		if err := l.f.ReadFull(p, int64(l.head.tableOffset)+4*i, "BAT"); err != nil {
			return err
		}
		for ; len(p) > 0; p = p[4:] {
			if e := be.Uint32(p); e != unusedEntry {
				if err := do(i, e); err != nil {
					return err
				}
			}
			i++
		}
	}
	return nil
}
