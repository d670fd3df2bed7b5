package vmdk

import (
	"bytes"
	"fmt"
	"io"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
)

// layout is the parsed and validated metadata of one file, the grain
// directory and tables excepted.
type layout struct {
	f          bounded.File
	head       header // the footer, where there is one
	footer     int64  // offset of the footer's marker, or -1
	desc       *descriptor
	descOff    int64
	size       int64 // virtual size, bytes
	grain      int64 // bytes
	compressed bool
	markers    bool
	problems   []formats.Finding
}

func (l *layout) problem(off int64, field, msg string, args ...any) {
	l.problems = append(l.problems, formats.Finding{
		Severity: formats.Corruption, Off: off, Field: field, Detail: fmt.Sprintf(msg, args...)})
}

// Sniff reports whether the file is a VMDK of any kind, by its first bytes.
func Sniff(head []byte, _ io.ReaderAt, _ int64) bool {
	return bytes.HasPrefix(head, []byte(magic)) || bytes.HasPrefix(head, []byte(magicCOWD)) ||
		bytes.HasPrefix(head, []byte(magicSE)) || isDescriptor(head)
}

// parse reads the header, the footer and the descriptor.
func parse(r io.ReaderAt, size int64) (*layout, error) {
	l := &layout{f: bounded.File{R: r, Size: size, Format: Name}, footer: -1}
	b, err := l.f.Bytes(0, min(size, headerSize), "header", headerSize)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(b, []byte(magicCOWD)):
		return nil, formats.Unsupported(Name, 0, "magicNumber", "a vmfsSparse extent")
	case bytes.HasPrefix(b, []byte(magicSE)):
		return nil, formats.Unsupported(Name, 0, "magicNumber", "a seSparse extent")
	case isDescriptor(b):
		return nil, l.refuseText()
	case !bytes.HasPrefix(b, []byte(magic)):
		return nil, formats.Unknown(Name, 0, "magicNumber", "no VMDK")
	case len(b) < headerSize:
		return nil, corrupt(0, "header", "the file has %d bytes", size)
	}
	l.head = parseHeader(b)
	if err := l.head.validate(0); err != nil {
		return nil, err
	}
	if l.head.gdOffset == gdAtEnd {
		if err := l.readFooter(); err != nil {
			return nil, err
		}
	}
	return l, l.readRest()
}

// refuseText reads a descriptor that is a file of its own, and says what it
// describes.
func (l *layout) refuseText() error {
	b, err := l.f.Bytes(0, min(l.f.Size, maxDescriptor), "descriptor", maxDescriptor)
	if err != nil {
		return err
	}
	d, err := parseDescriptor(b, 0)
	if err != nil {
		return err
	}
	return d.refuse(0)
}

// validate checks the fields of a header at off by themselves.
func (h *header) validate(off int64) error {
	switch {
	case h.version < 1 || h.version > 3:
		return formats.Unsupported(Name, off+offVersion, "version", "%d", h.version)
	case h.flags&flagsIncompat&^(flagCompressed|flagMarkers) != 0:
		return formats.Unsupported(Name, off+offFlags, "flags", "%#x", h.flags)
	case h.flags&flagNewline != 0 && string(h.newlines[:]) != newlines:
		return corrupt(off+offNewlines, "singleEndLineChar", "% x, want % x: the file was transferred as text", h.newlines, newlines)
	case h.algorithm > algorithmDeflate:
		return formats.Unsupported(Name, off+offAlgorithm, "compressAlgorithm", "%d", h.algorithm)
	case (h.algorithm == algorithmDeflate) != (h.flags&flagCompressed != 0):
		return corrupt(off+offAlgorithm, "compressAlgorithm", "%d with flags %#x", h.algorithm, h.flags)
	case h.capacity > maxCapacity/sectorSize:
		return formats.Limit(Name, off+offCapacity, "capacity", "%d sectors, at most %d", h.capacity, int64(maxCapacity/sectorSize))
	case h.grainSize == 0 || h.grainSize&(h.grainSize-1) != 0:
		return corrupt(off+offGrainSize, "grainSize", "%d sectors is not a power of two", h.grainSize)
	case h.grainSize > maxGrain/sectorSize:
		return formats.Limit(Name, off+offGrainSize, "grainSize", "%d sectors, at most %d", h.grainSize, maxGrain/sectorSize)
	case h.numGTEsPerGT != gtEntries:
		return formats.Unsupported(Name, off+offGTEs, "numGTEsPerGT", "%d, want %d", h.numGTEsPerGT, gtEntries)
	}
	return nil
}

// readFooter replaces the header by the footer, which is the last but one
// sector, between its marker and the end-of-stream marker.
func (l *layout) readFooter() error {
	end := l.f.Size / sectorSize * sectorSize
	at := end - 3*sectorSize
	if at < headerSize {
		return corrupt(end, "footer", "missing: the file was cut short")
	}
	b, err := l.f.Bytes(at, 3*sectorSize, "footer", 3*sectorSize)
	if err != nil {
		return err
	}
	mark, foot, eos := parseMarker(b), b[sectorSize:2*sectorSize], parseMarker(b[2*sectorSize:])
	if mark.size != 0 || mark.kind != markerFooter || !bytes.HasPrefix(foot, []byte(magic)) || eos != (marker{kind: markerEOS}) {
		return corrupt(at, "footer", "missing: the file was cut short or has more after its end")
	}
	h := parseHeader(foot)
	if err := h.validate(at + sectorSize); err != nil {
		return err
	}
	if h.capacity != l.head.capacity || h.grainSize != l.head.grainSize || h.flags != l.head.flags || h.algorithm != l.head.algorithm {
		return corrupt(at+sectorSize, "footer", "its capacity, grainSize or flags are not those of the header")
	}
	if h.gdOffset == gdAtEnd {
		return corrupt(at+sectorSize+offGD, "gdOffset", "the footer has none")
	}
	h.descriptorOffset, h.descriptorSize = l.head.descriptorOffset, l.head.descriptorSize
	l.head, l.footer = h, at
	return nil
}

// readRest derives what the header means, and reads the descriptor.
func (l *layout) readRest() error {
	h := &l.head
	l.size = int64(h.capacity) * sectorSize
	l.grain = int64(h.grainSize) * sectorSize
	l.compressed = h.algorithm == algorithmDeflate
	l.markers = h.flags&flagMarkers != 0
	if n := l.tables(); n > maxDirectory {
		return formats.Limit(Name, offCapacity, "capacity", "%d grain tables, at most %d", n, maxDirectory)
	}
	if h.uncleanShutdown {
		l.problem(72, "uncleanShutdown", "the disk was not closed")
	}
	if h.descriptorOffset == 0 || h.descriptorSize == 0 {
		return formats.Unsupported(Name, offDescriptor, "descriptorOffset", "one extent of a disk in several files, which has no descriptor")
	}
	if h.descriptorSize > maxDescriptor/sectorSize {
		return formats.Limit(Name, offDescriptor, "descriptorSize", "%d sectors, at most %d", h.descriptorSize, maxDescriptor/sectorSize)
	}
	if h.descriptorOffset > uint64(l.f.Size/sectorSize) {
		return corrupt(offDescriptor, "descriptorOffset", "sector %d in a file of %d bytes", h.descriptorOffset, l.f.Size)
	}
	l.descOff = int64(h.descriptorOffset) * sectorSize
	b, err := l.f.Bytes(l.descOff, int64(h.descriptorSize)*sectorSize, "descriptor", maxDescriptor)
	if err != nil {
		return err
	}
	if l.desc, err = parseDescriptor(b, l.descOff); err != nil {
		return err
	}
	if !l.desc.supported() {
		return l.desc.refuse(l.descOff)
	}
	if n := l.desc.extents[0].sectors; n != int64(h.capacity) {
		l.problem(l.descOff, "descriptor", "its extent has %d sectors, the header says %d", n, h.capacity)
	}
	return nil
}

// tables is the number of grain tables.
func (l *layout) tables() int64 {
	span := l.grain * gtEntries
	return (l.size + span - 1) / span
}

// hasParent reports whether what the file does not hold is in another.
func (l *layout) hasParent() bool { return l.desc.parentCID != noParent }

func (l *layout) reference() formats.Reference {
	return formats.Reference{Kind: formats.RefParent, Name: l.desc.parentHint, Format: Name, ID: fmt.Sprintf("%08x", l.desc.parentCID)}
}

// readDirectory reads the grain directory at sector off and checks that each
// table is in the file.
func (l *layout) readDirectory(off uint64, field string, fieldOff int64) ([]uint32, error) {
	if off == 0 || off > uint64(l.f.Size/sectorSize) {
		return nil, corrupt(fieldOff, field, "sector %#x in a file of %d bytes", off, l.f.Size)
	}
	n := l.tables()
	at := int64(off) * sectorSize
	b, err := l.f.Entries(fieldOff, n, 4, field, 4*maxDirectory)
	if err != nil {
		return nil, err
	}
	if err := l.f.Check(at, b, field, 4*maxDirectory); err != nil {
		return nil, err
	}
	gd := make([]uint32, n)
	buf := make([]byte, min(64<<10, 4*n))
	for i := int64(0); i < n; {
		p := buf[:min(int64(len(buf)), 4*(n-i))]
		if err := l.f.ReadFull(p, at+4*i, field); err != nil {
			return nil, err
		}
		for ; len(p) > 0; p = p[4:] {
			gd[i] = le.Uint32(p)
			if msg := l.checkTable(gd[i]); msg != "" {
				return nil, corrupt(at+4*i, fmt.Sprintf("%s entry %d", field, i), "%s", msg)
			}
			i++
		}
	}
	return gd, nil
}

// checkTable tells why a grain table cannot be at sector s; "" when it can.
func (l *layout) checkTable(s uint32) string {
	off := int64(s) * sectorSize
	switch {
	case s == 0:
		return ""
	case off < l.metaEnd() && off+gtSize > l.descOff:
		return fmt.Sprintf("the grain table at %#x overlaps the descriptor", off)
	case off > l.f.Size-gtSize:
		return fmt.Sprintf("the grain table at %#x ends after the file, at %d", off, l.f.Size)
	}
	return ""
}

// metaEnd is the end of the header and the descriptor.
func (l *layout) metaEnd() int64 {
	return max(headerSize, l.descOff+int64(l.head.descriptorSize)*sectorSize)
}

// Entries of grain tables that are no sectors.
const (
	entryHole = 0
	entryZero = 1 // with flagZeroGrain
)

// checkEntry tells why grain n cannot be where its entry says; "" when it can.
func (l *layout) checkEntry(e uint32, n int64) string {
	if e == entryHole || e == entryZero && l.head.flags&flagZeroGrain != 0 {
		return ""
	}
	off := int64(e) * sectorSize
	need := int64(sectorSize)
	if !l.compressed {
		need = min(l.grain, l.size-n*l.grain)
	}
	switch {
	case off < l.metaEnd() && off+need > l.descOff || off < headerSize:
		return fmt.Sprintf("the grain at %#x overlaps the descriptor", off)
	case off > l.f.Size-need:
		return fmt.Sprintf("the grain at %#x ends after the file, at %d", off, l.f.Size)
	}
	return ""
}

// Info implements formats.Describer.
func (l *layout) Info() formats.Info {
	d := l.desc
	info := formats.Info{
		Format:      Name,
		Subformat:   d.createType,
		VirtualSize: l.size,
		ClusterSize: l.grain,
		Properties: []formats.Property{
			{Name: "version", Value: int64(l.head.version)},
			{Name: "cid", Value: fmt.Sprintf("%08x", d.cid)},
			{Name: "compressed", Value: l.compressed},
			{Name: "extent", Value: d.extents[0].name},
		},
	}
	info.Properties = append(info.Properties, d.ddb...)
	if l.hasParent() {
		info.References = []formats.Reference{l.reference()}
	}
	for _, p := range l.problems {
		info.Problems = append(info.Problems, fmt.Sprintf("%s at %#x: %s", p.Field, p.Off, p.Detail))
	}
	return info
}
