package ext4

import (
	"errors"

	"imgmaint/formats"
)

var _ formats.Checker = (*FS)(nil)

// Check verifies the group descriptors and the bitmaps: their places, their
// checksums, and that they agree on what is free. It reads no directories; a
// walk of the file system verifies those. Clusters are those of the report.
func (f *FS) Check() (*formats.CheckReport, error) {
	s := f.sb
	if s.groups > maxUsageGroups {
		return nil, formats.Limit(Name, s.off+0x4, "s_blocks_count", "%d groups, at most %d are checked", s.groups, maxUsageGroups)
	}
	r := &formats.CheckReport{}
	ratio := uint64(1)
	if s.roCompat&roBigalloc != 0 {
		ratio <<= s.logClusterSize - s.logBlockSize
	}
	buf := make([]byte, s.blockSize)
	for g := range s.groups {
		d, err := f.groupDesc(g)
		if err == nil {
			first := s.groupFirstBlock(g)
			n := min(uint64(s.blocksPerGroup), s.blocksCount-first)
			clusters := uint32((n + ratio - 1) / ratio)
			perGroup := uint32(uint64(s.blocksPerGroup) / ratio)
			r.TotalClusters += int64(clusters)
			r.AllocatedClusters += int64(clusters) - int64(d.freeBlocks)
			if d.flags&groupBlockUninit == 0 {
				err = f.checkBitmap(buf, d.blockBitmap, perGroup, clusters, d.freeBlocks, d.blockBitmapCsum, "block bitmap", "bg_free_blocks_count")
			}
			if d.flags&groupInodeUninit == 0 {
				err = errors.Join(err, f.checkBitmap(buf, d.inodeBitmap, s.inodesPerGroup, s.inodesPerGroup, d.freeInodes, d.inodeBitmapCsum,
					"inode bitmap", "bg_free_inodes_count"))
			}
		}
		for _, err := range unjoin(err) {
			var fe *formats.Error
			if !errors.Is(err, formats.ErrCorrupt) || !errors.As(err, &fe) {
				return nil, err
			}
			r.Add(formats.Finding{Severity: formats.Corruption, Off: fe.Off, Field: fe.Field, Detail: fe.Err.Error()})
		}
	}
	return r, nil
}

// unjoin returns the errors that errors.Join made one of.
func unjoin(err error) []error {
	if l, ok := err.(interface{ Unwrap() []error }); ok {
		return l.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// checkBitmap verifies the bitmap at block blk: all bits of it are summed, the
// first used of them are of this group and free of them are zero.
func (f *FS) checkBitmap(buf []byte, blk uint64, bits, used, free, sum uint32, what, field string) error {
	off := int64(blk) << f.sb.blockBits
	if blk < uint64(f.sb.firstDataBlock) || blk >= f.sb.blocksCount {
		return formats.Corrupt(Name, -1, what, "block %d of %d", blk, f.sb.blocksCount)
	}
	if err := f.readDev(buf, off, what); err != nil {
		return err
	}
	if f.sb.metadataCsum() {
		if got := f.sb.bitmapChecksum(buf, bits); got != sum {
			return formats.Corrupt(Name, off, what, "checksum %#x, computed %#x", sum, got)
		}
	}
	zeros := uint32(0)
	for i := range used {
		if buf[i/8]>>(i%8)&1 == 0 {
			zeros++
		}
	}
	if zeros != free {
		return formats.Corrupt(Name, off, field, "%d, the bitmap has %d", free, zeros)
	}
	return nil
}
