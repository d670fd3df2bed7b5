package qcow2

import (
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"imgmaint/formats"
)

// A snapshot is an entry of the snapshot table (spec, "Snapshots").
type snapshot struct {
	pos         int64  // of the entry in the file
	l1Off       uint64 // u64 at 0
	l1Size      uint32 // u32 at 8
	id, name    string
	sec, nsec   uint32 // u32 at 16 and 20
	vmStateSize uint64 // u32 at 32, or u64 at 40
	diskSize    uint64 // u64 at 48; the image's size where it is left out
}

// parseSnapshots reads the snapshot table. The L1 tables in it are looked at
// only when they are used.
func (l *layout) parseSnapshots() error {
	if l.nbSnapshots == 0 {
		return nil
	}
	start := int64(l.snapshotsOff)
	off := start
	var buf [64]byte
	for i := range l.nbSnapshots {
		field := "snapshot " + strconv.Itoa(int(i))
		if err := l.f.ReadFull(buf[:40], off, field); err != nil {
			return err
		}
		s := snapshot{
			pos:         off,
			l1Off:       be.Uint64(buf[0:]),
			l1Size:      be.Uint32(buf[8:]),
			sec:         be.Uint32(buf[16:]),
			nsec:        be.Uint32(buf[20:]),
			vmStateSize: uint64(be.Uint32(buf[32:])),
			diskSize:    l.size,
		}
		idLen, nameLen := int64(be.Uint16(buf[12:])), int64(be.Uint16(buf[14:]))
		extra := int64(be.Uint32(buf[36:]))
		if extra > maxSnapshotExtra {
			return limit(off+36, field+" extra data", "%d bytes, at most %d", extra, maxSnapshotExtra)
		}
		if k := min(extra, 24) &^ 7; k > 0 {
			if err := l.f.ReadFull(buf[:k], off+40, field); err != nil {
				return err
			}
			s.vmStateSize = be.Uint64(buf[0:])
			if k >= 16 {
				s.diskSize = be.Uint64(buf[8:])
			}
		}
		end := off + 40 + extra + idLen + nameLen
		if end-start > maxSnapshotTable {
			return limit(off, "snapshot table", "more than %d bytes", maxSnapshotTable)
		}
		b, err := l.f.Bytes(off+40+extra, idLen+nameLen, field, 1<<17)
		if err != nil {
			return err
		}
		s.id, s.name = string(b[:idLen]), string(b[idLen:])
		l.snapshots = append(l.snapshots, s)
		l.snapshotsSize = end - start
		off = start + (end-start+7)&^7
	}
	return nil
}

// find returns the snapshot of that id or else of that name.
func (l *layout) find(want string) (*snapshot, error) {
	for _, key := range []func(s *snapshot) string{
		func(s *snapshot) string { return s.id },
		func(s *snapshot) string { return s.name },
	} {
		for i := range l.snapshots {
			if s := &l.snapshots[i]; key(s) == want {
				return s, nil
			}
		}
	}
	return nil, &formats.Error{Format: Name, Off: int64(l.snapshotsOff), Field: "snapshot",
		Err: fmt.Errorf("%w: %q", fs.ErrNotExist, want)}
}

// validate checks the L1 table and the size of a snapshot that is to be read.
func (s *snapshot) validate(l *layout) error {
	field := fmt.Sprintf("snapshot %q", s.id)
	switch {
	case s.l1Size > maxL1Bytes/8:
		return limit(s.pos+8, field+" l1_size", "%d entries, at most %d", s.l1Size, maxL1Bytes/8)
	case s.diskSize > 1<<62:
		return limit(s.pos+48, field+" disk size", "%d bytes", s.diskSize)
	}
	n := 8 * int64(s.l1Size)
	if err := l.table(s.pos, field+" l1_table_offset", s.l1Off, n); err != nil {
		return err
	}
	for _, r := range l.regions() {
		if n > 0 && r.name != "L1 table" && r.overlaps(int64(s.l1Off), n) {
			return corrupt(s.pos, field+" l1_table_offset", "overlaps the %s", r.name)
		}
	}
	return nil
}

func (s *snapshot) describe() formats.Snapshot {
	return formats.Snapshot{
		ID:          s.id,
		Name:        s.name,
		Time:        time.Unix(int64(s.sec), int64(s.nsec)).UTC(),
		VMStateSize: clampSize(s.vmStateSize),
		VirtualSize: clampSize(s.diskSize),
	}
}

func clampSize(n uint64) int64 { return int64(min(n, 1<<63-1)) }

// A bitmap is an entry of the bitmap directory (spec, "Bitmap directory").
type bitmap struct {
	pos             int64  // of the entry in the file
	tableOff        uint64 // bitmap_table_offset, u64 at 0
	tableSize       uint32 // bitmap_table_size, u32 at 8: entries
	flags           uint32 // u32 at 12
	kind            uint8  // type, u8 at 16
	granularityBits uint8  // u8 at 17
	name            string
}

const (
	bitmapInUse = 1 << 0
	bitmapAuto  = 1 << 1
)

// parseBitmaps reads the bitmap directory. Without the autoclear bit the
// extension is not to be trusted, and only noted.
func (l *layout) parseBitmaps() error {
	x := l.bitmaps
	if l.autoclear&autoclearBitmaps == 0 {
		if x.count > 0 {
			l.problem("bitmaps: written to by a program that did not keep them; they are ignored")
		}
		l.bitmaps = bitmapsExt{}
		return nil
	}
	if x == (bitmapsExt{}) {
		return corrupt(hdrAutoclear, "autoclear_features", "bitmaps without the bitmaps extension")
	}
	switch {
	case x.count == 0:
		return corrupt(-1, "nb_bitmaps", "0")
	case x.count > maxBitmaps:
		return limit(-1, "nb_bitmaps", "%d, at most %d", x.count, maxBitmaps)
	case x.dirSize > maxBitmapDir:
		return limit(-1, "bitmap_directory_size", "%d bytes, at most %d", x.dirSize, maxBitmapDir)
	}
	if err := l.table(-1, "bitmap_directory_offset", x.dirOff, int64(x.dirSize)); err != nil {
		return err
	}
	dir, err := l.f.Bytes(int64(x.dirOff), int64(x.dirSize), "bitmap directory", maxBitmapDir)
	if err != nil {
		return err
	}
	off := int64(0)
	for i := range x.count {
		field := "bitmap " + strconv.Itoa(int(i))
		at := int64(x.dirOff) + off
		b := dir[off:]
		if len(b) < 24 {
			return corrupt(at, field, "beyond the end of the bitmap directory")
		}
		m := bitmap{
			pos:             at,
			tableOff:        be.Uint64(b[0:]),
			tableSize:       be.Uint32(b[8:]),
			flags:           be.Uint32(b[12:]),
			kind:            b[16],
			granularityBits: b[17],
		}
		nameLen, extra := int64(be.Uint16(b[18:])), int64(be.Uint32(b[20:]))
		switch {
		case m.granularityBits > 62:
			return corrupt(at+17, field+" granularity_bits", "%d", m.granularityBits)
		case nameLen == 0 || nameLen > maxBitmapName:
			return corrupt(at+18, field+" name_size", "%d is not from 1 to %d", nameLen, maxBitmapName)
		case 24+extra+nameLen > int64(len(b)):
			return corrupt(at, field, "beyond the end of the bitmap directory")
		}
		m.name = string(b[24+extra:][:nameLen])
		l.bitmapList = append(l.bitmapList, m)
		off = min(off+(24+extra+nameLen+7)&^7, int64(len(dir)))
	}
	return nil
}

func (m *bitmap) describe() formats.Bitmap {
	d := formats.Bitmap{Name: m.name, Granularity: 1 << m.granularityBits}
	if m.flags&bitmapInUse != 0 {
		d.Flags = append(d.Flags, "in-use")
	}
	if m.flags&bitmapAuto != 0 {
		d.Flags = append(d.Flags, "auto")
	}
	return d
}

func (l *layout) problem(msg string, args ...any) {
	l.problems = append(l.problems, fmt.Sprintf(msg, args...))
}
