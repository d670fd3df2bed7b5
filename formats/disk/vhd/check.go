package vhd

import (
	"fmt"
	"io"
	"slices"

	"imgmaint/formats"
)

// padding is the largest gap that is taken for alignment and not for a leak:
// Windows 8 and later, and this package, put the data of blocks on 4 KiB.
const padding = 4096

// headRoom is the same between the metadata and the first block, where
// Windows leaves some.
const headRoom = 64 << 10

// Check checks the metadata of the VHD of size bytes in r. Unlike Open it
// goes on past block entries that are wrong, and it needs no parent.
func Check(r io.ReaderAt, size int64) (*formats.CheckReport, error) {
	l, err := parse(r, size, "")
	if err != nil {
		return nil, err
	}
	return l.Check()
}

// Check implements formats.Checker.
func (l *layout) Check() (*formats.CheckReport, error) {
	rep := new(formats.CheckReport)
	for _, p := range l.problems {
		rep.Add(p)
	}
	if l.foot.diskType == typeFixed {
		rep.ImageEnd = l.f.Size
		if gap := l.end - l.size; gap > 0 {
			rep.Add(formats.Finding{Severity: formats.Leak, Off: l.size, Field: "data", Detail: fmt.Sprintf("%d bytes after the end of the disk", gap)})
		}
		return rep, nil
	}
	rep.TotalClusters = l.blocks()
	meta := l.metaRegions()
	var used []uint32 // sectors of the blocks that could be where they say
	err := l.eachEntry(int64(l.head.maxTableEntries), func(i int64, e uint32) error {
		off := int64(l.head.tableOffset) + 4*i
		field := fmt.Sprintf("BAT entry %d", i)
		if msg := l.checkEntry(e, meta); msg != "" {
			rep.Add(formats.Finding{Severity: formats.Corruption, Off: off, Field: field, Detail: msg})
			return nil
		}
		if i >= l.blocks() {
			rep.Add(formats.Finding{Severity: formats.Leak, Off: off, Field: field, Detail: "a block after the end of the disk"})
		} else {
			rep.AllocatedClusters++
		}
		used = append(used, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(used)
	bs := int64(l.head.blockSize)
	span := bitmapSize(bs) + bs
	for i := 1; i < len(used); i++ {
		a, b := int64(used[i-1])*sectorSize, int64(used[i])*sectorSize
		if b < a+span {
			rep.Add(formats.Finding{Severity: formats.Corruption, Off: b, Field: "data block", Detail: fmt.Sprintf("overlaps the block at %#x", a)})
		}
	}
	return rep, l.leaks(rep, meta, used, span)
}

// leaks finds the parts of the file that nothing uses.
func (l *layout) leaks(rep *formats.CheckReport, meta []region, used []uint32, span int64) error {
	for _, loc := range l.head.locators {
		// The room kept for a locator, in bytes or, if that is too little
		// for it, in sectors.
		room := int64(loc.dataSpace)
		if loc.dataSpace < loc.dataLength {
			room *= sectorSize
		}
		if off := int64(loc.dataOffset); room > 0 && off > 0 && room <= l.end-off {
			meta = append(meta, region{off, off + room, "parent locator"})
		}
	}
	bm, err := l.batmap()
	if err != nil {
		return err
	}
	meta = append(meta, bm...)
	slices.SortFunc(meta, func(a, b region) int { return int(min(1, max(-1, a.off-b.off))) })
	end, room := int64(0), int64(headRoom)
	gap := func(to int64) {
		if to-end >= room {
			rep.Add(formats.Finding{Severity: formats.Leak, Off: end, Field: "file", Detail: fmt.Sprintf("%d bytes nothing uses", to-end)})
		}
	}
	for len(meta) > 0 || len(used) > 0 {
		var next region
		if len(used) == 0 || len(meta) > 0 && meta[0].off <= int64(used[0])*sectorSize {
			next, meta = meta[0], meta[1:]
		} else {
			off := int64(used[0]) * sectorSize
			next, used = region{off: off, end: off + span}, used[1:]
		}
		gap(next.off)
		if next.name == "" { // a block
			room = padding
		}
		end = max(end, next.end)
	}
	gap(l.end)
	rep.ImageEnd = end
	if l.end < l.f.Size {
		rep.ImageEnd = l.f.Size
	}
	return nil
}

// batmap finds XenServer's map of full blocks: a header in the sector after
// the BAT (batmap_offset, u64 at 8; batmap_size, u32 at 16, sectors).
func (l *layout) batmap() ([]region, error) {
	off := alignUp(int64(l.head.tableOffset)+4*int64(l.head.maxTableEntries), sectorSize)
	if off > l.end-sectorSize {
		return nil, nil
	}
	b, err := l.f.Bytes(off, sectorSize, "batmap", sectorSize)
	if err != nil || string(b[:8]) != batmapCookie {
		return nil, err
	}
	out := []region{{off, off + sectorSize, "batmap header"}}
	at, n := be.Uint64(b[8:]), int64(be.Uint32(b[16:]))*sectorSize
	if at <= uint64(l.end) && n <= l.end-int64(at) {
		out = append(out, region{int64(at), int64(at) + n, "batmap"})
	}
	return out, nil
}
