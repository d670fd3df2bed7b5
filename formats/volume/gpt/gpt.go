package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/bounded"
	"imgmaint/formats/internal/godiskfs"
)

// Options say how to read a table. Nil means the defaults.
type Options struct {
	// SectorSize is the logical sector size of the disk in bytes; 0 means to
	// find out.
	SectorSize int64
}

// Read reads the GUID partition table of the disk r of size bytes. A disk
// that has none is ErrUnknown: no header, or a master boot record with
// partitions of its own and no protective entry, for which the table is not
// in force. Damage that leaves a verified table is listed in its Problems.
func Read(r io.ReaderAt, size int64, opts *Options) (*formats.Table, error) {
	if opts == nil {
		opts = new(Options)
	}
	f := bounded.File{R: r, Size: size, Format: "gpt"}
	sizes := sectorSizes
	if s := opts.SectorSize; s != 0 {
		if s < 512 || s > 65536 || s&(s-1) != 0 {
			return nil, formats.Unsupported("gpt", -1, "sector size", "%d", s)
		}
		sizes = []int64{s}
	}
	if size < 3*sizes[0] {
		return nil, formats.Unknown("gpt", -1, "", "a disk of %d bytes has no room for a table", size)
	}
	m, err := readMBR(f)
	if err != nil {
		return nil, err
	}
	if m.foreign {
		return nil, formats.Unknown("gpt", 0, "protective MBR", "the master boot record has partitions of its own")
	}
	s := &scan{f: f, mbr: m}
	for _, sector := range sizes {
		if err := s.try(sector); err != nil {
			return nil, err
		}
		if s.primary != nil {
			break
		}
	}
	return s.table()
}

// A scan is the search for the headers of one disk.
type scan struct {
	f               bounded.File
	mbr             mbrInfo
	sector          int64
	primary, backup *header
	// firstErr is what is wrong with a header that has the signature, and
	// with the primary once a backup was chosen.
	firstErr, primaryErr, backupErr error
}

// try looks for headers with one sector size. Only errors of the reader are
// returned.
func (s *scan) try(sector int64) error {
	last := s.f.Size/sector - 1
	if last < 2 {
		return nil
	}
	p, perr := readHeader(s.f, 1, sector)
	if fatal(perr) {
		return perr
	}
	if p != nil {
		s.sector, s.primary, s.primaryErr = sector, p, nil
		s.backup, s.backupErr = nil, nil
		at := last
		if p.alternateLBA > 1 && p.alternateLBA <= uint64(last) {
			at = int64(p.alternateLBA)
		}
		s.backup, s.backupErr = readHeader(s.f, at, sector)
		if s.backup == nil && at != last && !fatal(s.backupErr) {
			s.backup, s.backupErr = readHeader(s.f, last, sector)
		}
		if fatal(s.backupErr) {
			return s.backupErr
		}
		return nil
	}
	if s.firstErr == nil && !errors.Is(perr, formats.ErrUnknown) {
		s.firstErr = perr
	}
	if s.backup != nil {
		return nil
	}
	b, berr := readHeader(s.f, last, sector)
	if fatal(berr) {
		return berr
	}
	if b != nil {
		s.sector, s.backup, s.primaryErr = sector, b, perr
	} else if s.firstErr == nil && !errors.Is(berr, formats.ErrUnknown) {
		s.firstErr = berr
	}
	return nil
}

// fatal reports whether err is the reader's and not the table's.
func fatal(err error) bool {
	return err != nil && !errors.Is(err, formats.ErrUnknown) && !errors.Is(err, formats.ErrCorrupt) &&
		!errors.Is(err, formats.ErrLimit) && !errors.Is(err, errors.ErrUnsupported)
}

// table makes the result of what the scan found.
func (s *scan) table() (*formats.Table, error) {
	h := s.primary
	t := &formats.Table{Scheme: "gpt", SectorSize: s.sector}
	switch {
	case h != nil:
		s.checkBackup(t)
	case s.backup != nil:
		h = s.backup
		t.Problems = append(t.Problems, fmt.Sprintf("primary table is damaged (%v): the backup is used", s.primaryErr))
	case s.firstErr != nil:
		return nil, s.firstErr
	case s.mbr.protective:
		return nil, formats.Corrupt("gpt", -1, "Signature", "the master boot record is protective, and neither header is there")
	default:
		return nil, formats.Unknown("gpt", -1, "Signature", "")
	}
	t.UUID = h.guid
	s.checkMBR(t)
	if err := s.volumes(t, h); err != nil {
		return nil, err
	}
	if n := len(t.Problems); n > maxProblems {
		t.Problems = append(t.Problems[:maxProblems], fmt.Sprintf("%d more problems", n-maxProblems))
	}
	return t, nil
}

func (s *scan) checkBackup(t *formats.Table) {
	p, b := s.primary, s.backup
	last := s.f.Size/s.sector - 1
	if p.alternateLBA != uint64(last) {
		t.Problems = append(t.Problems, fmt.Sprintf("backup table is expected at sector %d, and the disk ends at sector %d", p.alternateLBA, last))
	}
	if b == nil {
		t.Problems = append(t.Problems, fmt.Sprintf("backup table is damaged (%v)", s.backupErr))
		return
	}
	var diff []string
	for _, c := range []struct {
		name  string
		equal bool
	}{
		{"DiskGUID", p.guid == b.guid},
		{"FirstUsableLBA", p.firstUsable == b.firstUsable},
		{"LastUsableLBA", p.lastUsable == b.lastUsable},
		{"NumberOfPartitionEntries", p.entries == b.entries},
		{"SizeOfPartitionEntry", p.entrySize == b.entrySize},
		{"partition entries", bytes.Equal(p.array, b.array)},
		{"AlternateLBA", b.alternateLBA == 1},
	} {
		if !c.equal {
			diff = append(diff, c.name)
		}
	}
	if diff != nil {
		t.Problems = append(t.Problems, "primary and backup table disagree in "+strings.Join(diff, ", ")+": the primary is used")
	}
}

func (s *scan) checkMBR(t *formats.Table) {
	m := s.mbr
	if !m.protective {
		t.Problems = append(t.Problems, "protective MBR is missing")
		return
	}
	if m.others > 0 {
		t.Problems = append(t.Problems, fmt.Sprintf("hybrid MBR: %d entries beside the protective one", m.others))
		return
	}
	if m.start != 1 {
		t.Problems = append(t.Problems, fmt.Sprintf("protective MBR entry starts at sector %d, not 1", m.start))
	}
	if n := min(s.f.Size/s.sector-1, 0xffffffff); int64(m.sectors) != n && m.sectors != 0xffffffff {
		t.Problems = append(t.Problems, fmt.Sprintf("protective MBR entry covers %d sectors, the disk has %d after it", m.sectors, n))
	}
}

// volumes fills t.Volumes from the array of h.
func (s *scan) volumes(t *formats.Table, h *header) error {
	sectors := uint64(s.f.Size / s.sector)
	if h.firstUsable > h.lastUsable+1 || h.lastUsable >= sectors {
		t.Problems = append(t.Problems, fmt.Sprintf("usable sectors are %d to %d in a disk of %d", h.firstUsable, h.lastUsable, sectors))
	}
	// The specification lets entries grow; what it defines are the first 128
	// bytes of each.
	array := h.array
	if h.entrySize != entryMin {
		array = make([]byte, 0, h.entries*entryMin)
		for i := range h.entries {
			array = append(array, h.array[i*h.entrySize:][:entryMin]...)
		}
	}
	entries, err := godiskfs.GPTEntries(array)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch {
		case e.First > e.Last:
			t.Problems = append(t.Problems, fmt.Sprintf("partition %d ends at sector %d, before its start %d: left out", e.Index, e.Last, e.First))
			continue
		case e.First >= sectors:
			t.Problems = append(t.Problems, fmt.Sprintf("partition %d starts at sector %d, beyond the end of the disk at %d: left out", e.Index, e.First, sectors))
			continue
		case e.Last >= sectors:
			t.Problems = append(t.Problems, fmt.Sprintf("partition %d ends at sector %d, beyond the end of the disk at %d: cut there", e.Index, e.Last, sectors))
			e.Last = sectors - 1
		case e.First < h.firstUsable || e.Last > h.lastUsable:
			t.Problems = append(t.Problems, fmt.Sprintf("partition %d, sectors %d to %d, leaves the usable sectors %d to %d", e.Index, e.First, e.Last, h.firstUsable, h.lastUsable))
		}
		t.Volumes = append(t.Volumes, formats.Volume{
			Index: e.Index, Off: int64(e.First) * s.sector, Len: int64(e.Last-e.First+1) * s.sector,
			Type: e.Type, TypeName: typeNames[e.Type], UUID: e.GUID,
			Name: name(e.Name), Bootable: e.Attributes&attrLegacy != 0,
		})
	}
	t.Problems = append(t.Problems, overlaps(t.Volumes)...)
	return nil
}

// name bounds a name to the 36 UTF-16 units the entry has for it. Names are
// what the guest wrote: printing them safely is the printer's work.
func name(s string) string {
	units := 0
	for i, r := range s {
		if units++; r > 0xffff {
			units++
		}
		if units > nameUnits {
			return s[:i]
		}
	}
	return s
}

// overlaps names the volumes that share sectors with one that starts before
// them.
func overlaps(vols []formats.Volume) (problems []string) {
	byOff := slices.Clone(vols)
	slices.SortStableFunc(byOff, func(a, b formats.Volume) int {
		if a.Off != b.Off {
			return int(min(1, max(-1, a.Off-b.Off)))
		}
		return a.Index - b.Index
	})
	var far formats.Volume
	for i, v := range byOff {
		if i > 0 && v.Off < far.Off+far.Len {
			problems = append(problems, fmt.Sprintf("partitions %d and %d overlap", far.Index, v.Index))
		}
		if v.Off+v.Len > far.Off+far.Len {
			far = v
		}
	}
	return problems
}

// mbrInfo is what the master boot record says of the table.
type mbrInfo struct {
	protective     bool // has an entry of type 0xee
	foreign        bool // has partitions, and none of type 0xee
	others         int  // entries beside the protective one
	start, sectors uint32
}

func readMBR(f bounded.File) (m mbrInfo, err error) {
	b, err := f.Bytes(0, 512, "protective MBR", 512)
	if err != nil {
		return m, err
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return m, nil
	}
	sane := true
	for i := range 4 {
		e := b[446+16*i:][:16]
		switch {
		case e[4] == typeProtected && !m.protective:
			m.protective = true
			m.start, m.sectors = binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		case e[4] != 0 && binary.LittleEndian.Uint32(e[12:]) != 0:
			m.others++
		}
		sane = sane && e[0]&0x7f == 0
	}
	// A boot sector of a file system has code where the entries would be.
	m.protective = m.protective && sane
	m.foreign = sane && !m.protective && m.others > 0
	return m, nil
}
