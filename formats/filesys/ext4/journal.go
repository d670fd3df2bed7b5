package ext4

import (
	"encoding/binary"
	"slices"

	"imgmaint/formats"
)

var be = binary.BigEndian

// The journal (ext4 doc, "Journal (jbd2)"). Every block of it that is not
// data begins with a header of 12 bytes: h_magic, h_blocktype, h_sequence.
const (
	jbdMagic      = 0xC03B3998
	jbdDescriptor = 1
	jbdCommit     = 2
	jbdSuperV1    = 3
	jbdSuperV2    = 4
	jbdRevoke     = 5

	jbdCompatChecksum = 0x1

	jbdIncompatRevoke     = 0x1
	jbdIncompat64bit      = 0x2
	jbdIncompatAsync      = 0x4
	jbdIncompatCsumV2     = 0x8
	jbdIncompatCsumV3     = 0x10
	jbdIncompatFastCommit = 0x20
	jbdIncompatKnown      = 0x3F

	jbdTagEscape   = 0x1 // the block began with jbdMagic, which was zeroed
	jbdTagSameUUID = 0x2 // no UUID follows the tag
	jbdTagLast     = 0x8

	jbdCRC32        = 1 // JBD2_CRC32_CHKSUM
	jbdCRC32C       = 4 // JBD2_CRC32C_CHKSUM
	jbdSuperSize    = 1024
	jbdHeaderSize   = 12
	jbdTailSize     = 4
	jbdMinBlocks    = 1024 // JBD2_MIN_JOURNAL_BLOCKS
	jbdDefaultFast  = 256  // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
	jbdCommitSumOff = 16   // h_chksum of a commit block
)

var jbdIncompatNames = map[uint]string{0: "journal_incompat_revoke", 1: "journal_64bit", 2: "journal_async_commit",
	3: "journal_checksum_v2", 4: "journal_checksum_v3", 5: "journal_fast_commit"}

// A journaled block has its newest contents in the journal.
type journaled struct {
	blk uint64
	src int64 // offset in bytes of the copy on disk; ^src if it is escaped
}

// applyOverlay replaces what the journal has of the bytes in p, read from off.
func (f *FS) applyOverlay(p []byte, off int64) error {
	bs, bits := f.sb.blockSize, f.sb.blockBits
	end := off + int64(len(p))
	i, _ := slices.BinarySearchFunc(f.overlay, uint64(off)>>bits, func(j journaled, blk uint64) int {
		switch {
		case j.blk < blk:
			return -1
		case j.blk > blk:
			return 1
		}
		return 0
	})
	for ; i < len(f.overlay); i++ {
		j := f.overlay[i]
		start := int64(j.blk) << bits
		if start >= end {
			break
		}
		from, to := max(start, off), min(start+bs, end)
		src, escaped := j.src, j.src < 0
		if escaped {
			src = ^src
		}
		q := p[from-off : to-off]
		if err := f.dev.ReadFull(q, src+from-start, "journal block"); err != nil {
			return err
		}
		if escaped && from-start < 4 {
			var magic [4]byte
			be.PutUint32(magic[:], jbdMagic)
			copy(q, magic[from-start:])
		}
	}
	return nil
}

// A journal is an internal journal while it is replayed.
type journal struct {
	fs       *FS
	in       inode
	last     run    // of the inode's map, found last
	sbOff    int64  // place of the journal's superblock on disk
	first    uint32 // s_first, u32 at 0x14: the first block of the log
	end      uint32 // after the last block of the log
	fcFirst  uint32 // the blocks of fast commits, up to fcLast
	fcLast   uint32
	sequence uint32 // s_sequence at 0x18
	start    uint32 // s_start at 0x1C: 0 when clean
	compat   uint32 // s_feature_compat at 0x24
	incompat uint32 // s_feature_incompat at 0x28
	seed     uint32 // of the checksums v2 and v3
	tagSize  int

	endSequence uint32 // after the last complete transaction
	revoked     map[uint64]uint32
	blocks      []journaled
}

// csum reports whether blocks have checksums of version 2 or 3.
func (j *journal) csum() bool { return j.incompat&(jbdIncompatCsumV2|jbdIncompatCsumV3) != 0 }

func (j *journal) corrupt(n uint32, field, msg string, args ...any) error {
	off, err := j.pos(n)
	if err != nil {
		off = -1
	}
	return formats.Corrupt(Name, off, field, "journal block %d: "+msg, append([]any{n}, args...)...)
}

// pos returns the place on disk of block n of the journal.
func (j *journal) pos(n uint32) (int64, error) {
	l := int64(n)
	if l < j.last.lblk || l >= j.last.lblk+j.last.n {
		r, err := j.fs.mapDisk(&j.in, l)
		if err != nil {
			return 0, err
		}
		if r.kind != formats.Data {
			return 0, formats.Corrupt(Name, j.in.off+0x28, "i_block", "block %d of the journal is a hole", n)
		}
		j.last = r
	}
	return (int64(j.last.pblk) + l - j.last.lblk) << j.fs.sb.blockBits, nil
}

// read fills p with block n.
func (j *journal) read(p []byte, n uint32) error {
	off, err := j.pos(n)
	if err != nil {
		return err
	}
	return j.fs.dev.ReadFull(p, off, "journal block")
}

// replay replays an unclean journal in memory: it finds the blocks whose
// newest contents are in the log, and reads the superblock again.
func (f *FS) replay() error {
	s := f.sb
	dirty := s.incompat&incompatRecover != 0
	if s.compat&compatHasJournal == 0 {
		if dirty {
			f.problem("recovery is asked for, but there is no journal")
		}
		return nil
	}
	if s.journalInum == 0 {
		if dirty {
			return formats.Unsupported(Name, s.off+0xE4, "s_journal_dev", "unclean, and the journal is on another device")
		}
		return nil
	}
	j := &journal{fs: f}
	if err := j.open(s.journalInum); err != nil {
		if !dirty {
			f.problem("the journal is damaged and not needed: %v", err)
			return nil
		}
		return err
	}
	if j.start == 0 {
		return nil
	}
	if !dirty {
		f.problem("the journal has transactions though the superblock asks for no recovery: they were replayed")
	}
	if err := j.recover(); err != nil {
		return err
	}
	f.replayed = true
	f.overlay = j.blocks
	f.problem("not unmounted cleanly: %d transactions with %d blocks were replayed from the journal in memory",
		j.endSequence-j.sequence, len(j.blocks))
	// What was read so far may have been replaced.
	f.blocks, f.inodes = newCache(blockCacheSize), newCache(inodeCacheSize)
	if s.off == superblockOff {
		again, err := f.readSuperblock(s.off)
		if err != nil {
			return err
		}
		if again.blockSize != s.blockSize {
			return formats.Corrupt(Name, s.off+0x18, "s_log_block_size", "%d in the journal, %d on disk", again.logBlockSize, s.logBlockSize)
		}
		f.sb = again
	}
	if j.incompat&jbdIncompatFastCommit != 0 {
		return j.replayFast()
	}
	return nil
}

// open reads the journal's inode and superblock.
func (j *journal) open(ino uint32) error {
	f, s := j.fs, j.fs.sb
	if _, err := f.readInode(ino, &j.in); err != nil {
		return err
	}
	if j.in.mode&modeFmt != modeReg || j.in.links == 0 || j.in.flags&(flagEncrypt|flagInlineData) != 0 {
		return formats.Corrupt(Name, j.in.off, "i_mode", "%#o in the journal's inode %d", j.in.mode, ino)
	}
	var err error
	if j.sbOff, err = j.pos(0); err != nil {
		return err
	}
	b := make([]byte, jbdSuperSize)
	if err := f.dev.ReadFull(b, j.sbOff, "journal superblock"); err != nil {
		return err
	}
	corrupt := func(off int64, field, msg string, args ...any) error {
		return formats.Corrupt(Name, j.sbOff+off, field, msg, args...)
	}
	if m := be.Uint32(b); m != jbdMagic {
		return corrupt(0, "h_magic", "%#x in the journal superblock", m)
	}
	typ := be.Uint32(b[4:])
	if typ != jbdSuperV1 && typ != jbdSuperV2 {
		return corrupt(4, "h_blocktype", "%d in the journal superblock", typ)
	}
	blockSize, maxLen := be.Uint32(b[0xC:]), be.Uint32(b[0x10:])
	j.first, j.sequence, j.start = be.Uint32(b[0x14:]), be.Uint32(b[0x18:]), be.Uint32(b[0x1C:])
	if typ == jbdSuperV2 {
		j.compat, j.incompat = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
		if ro := be.Uint32(b[0x2C:]); ro != 0 {
			return formats.Unsupported(Name, j.sbOff+0x2C, "s_feature_ro_compat", "%#x in the journal", ro)
		}
	}
	if bad := j.incompat &^ jbdIncompatKnown; bad != 0 {
		return formats.Unsupported(Name, j.sbOff+0x28, "s_feature_incompat", "%s in the journal", featureList(bad, jbdIncompatNames, 'J'))
	}
	if j.csum() {
		if j.incompat&jbdIncompatCsumV2 != 0 && j.incompat&jbdIncompatCsumV3 != 0 || j.compat&jbdCompatChecksum != 0 {
			return corrupt(0x28, "s_feature_incompat", "checksums of two versions")
		}
		if t := b[0x50]; t != jbdCRC32C {
			return formats.Unsupported(Name, j.sbOff+0x50, "s_checksum_type", "%d in the journal", t)
		}
		sum := crc32c(^uint32(0), b[:0xFC])
		sum = crc32c(sum, []byte{0, 0, 0, 0})
		sum = crc32c(sum, b[0x100:])
		if got := be.Uint32(b[0xFC:]); got != sum {
			return corrupt(0xFC, "s_checksum", "%#x in the journal superblock, computed %#x", got, sum)
		}
		j.seed = crc32c(^uint32(0), b[0x30:0x40]) // s_uuid
	}
	if int64(blockSize) != s.blockSize {
		return corrupt(0xC, "s_blocksize", "%d in the journal, %d in the file system", blockSize, s.blockSize)
	}
	if maxLen < 2 || int64(maxLen) > j.in.size>>s.blockBits {
		return corrupt(0x10, "s_maxlen", "%d blocks, the journal's inode has %d bytes", maxLen, j.in.size)
	}
	j.end = maxLen
	if j.incompat&jbdIncompatFastCommit != 0 {
		n := be.Uint32(b[0x54:]) // s_num_fc_blks
		if n == 0 {
			n = jbdDefaultFast
		}
		if n < maxLen && maxLen-n >= jbdMinBlocks {
			j.end = maxLen - n
		}
		j.fcFirst, j.fcLast = j.end+1, maxLen
	}
	if j.first == 0 || j.first >= j.end {
		return corrupt(0x14, "s_first", "%d of %d", j.first, j.end)
	}
	if j.start != 0 && (j.start < j.first || j.start >= j.end) {
		return corrupt(0x1C, "s_start", "%d outside [%d, %d)", j.start, j.first, j.end)
	}
	j.tagSize = 8
	switch {
	case j.incompat&jbdIncompatCsumV3 != 0:
		j.tagSize = 16
	default:
		if j.incompat&jbdIncompat64bit != 0 {
			j.tagSize += 4
		}
		if j.incompat&jbdIncompatCsumV2 != 0 {
			j.tagSize += 2
		}
	}
	return nil
}

// advance returns the block n places after pos in the log, which is a ring.
func (j *journal) advance(pos uint32, n int) uint32 {
	size := j.end - j.first
	return j.first + (pos-j.first+uint32(n)%size)%size
}

// tailOK verifies the checksum at the end of a descriptor or revoke block.
func (j *journal) tailOK(b []byte) bool {
	if !j.csum() {
		return true
	}
	at := len(b) - jbdTailSize
	sum := crc32c(j.seed, b[:at])
	return crc32c(sum, []byte{0, 0, 0, 0}) == be.Uint32(b[at:])
}

// A tag names the home of one data block that follows its descriptor.
type tag struct {
	blk      uint64
	flags    uint32
	checksum uint32
}

// tags calls fn for the tags in a descriptor block.
func (j *journal) tags(b []byte, fn func(tag)) {
	limit := len(b)
	if j.csum() {
		limit -= jbdTailSize
	}
	for at := jbdHeaderSize; at+j.tagSize <= limit; {
		p := b[at:]
		t := tag{blk: uint64(be.Uint32(p))}
		high := 8
		if j.incompat&jbdIncompatCsumV3 != 0 {
			t.flags, t.checksum = be.Uint32(p[4:]), be.Uint32(p[12:])
		} else {
			t.checksum, t.flags = uint32(be.Uint16(p[4:])), uint32(be.Uint16(p[6:]))
		}
		if j.incompat&jbdIncompat64bit != 0 {
			t.blk |= uint64(be.Uint32(p[high:])) << 32
		}
		fn(t)
		at += j.tagSize
		if t.flags&jbdTagSameUUID == 0 {
			at += 16
		}
		if t.flags&jbdTagLast != 0 {
			return
		}
	}
}

// recover reads the log three times: to find its end, to collect what was
// revoked, and to map the blocks.
func (j *journal) recover() error {
	if err := j.scan(); err != nil {
		return err
	}
	j.revoked = make(map[uint64]uint32)
	if err := j.walk(nil, j.revoke); err != nil {
		return err
	}
	if err := j.walk(j.replayBlocks, nil); err != nil {
		return err
	}
	j.compact()
	j.revoked = nil
	return nil
}

// scan finds the end of the log: the first transaction that is not complete
// or whose checksums say that it is not.
func (j *journal) scan() error {
	b, data := make([]byte, j.fs.sb.blockSize), []byte(nil)
	pos, seq := j.start, j.sequence
	crc := ^uint32(0)
	var lastTime uint64
	suspect := uint32(0) // a block with a bad checksum in this transaction
	v1 := j.compat&jbdCompatChecksum != 0
	done := func() error { j.endSequence = seq; return nil }
	for steps := j.end - j.first; ; steps-- {
		if steps == 0 {
			return done() // the log is full
		}
		if err := j.read(b, pos); err != nil {
			return err
		}
		if be.Uint32(b) != jbdMagic || be.Uint32(b[8:]) != seq {
			return done()
		}
		at := pos
		pos = j.advance(pos, 1)
		switch be.Uint32(b[4:]) {
		case jbdDescriptor:
			if !j.tailOK(b) {
				suspect = at
			}
			n := 0
			j.tags(b, func(tag) { n++ })
			if uint32(n) >= j.end-j.first {
				return done()
			}
			if v1 {
				crc = crc32be(crc, b)
				if data == nil {
					data = make([]byte, len(b))
				}
				for i := range n {
					if err := j.read(data, j.advance(pos, i)); err != nil {
						return err
					}
					crc = crc32be(crc, data)
				}
			}
			pos = j.advance(pos, n)
			steps -= min(uint32(n), steps-1)
		case jbdRevoke:
			if !j.tailOK(b) {
				suspect = at
			}
		case jbdCommit:
			time := be.Uint64(b[48:])
			if suspect != 0 {
				if time < lastTime {
					return done() // left over from before the journal was made
				}
				return j.corrupt(suspect, "t_checksum", "transaction %d is complete, its checksum is wrong", seq)
			}
			if !j.commitOK(b, v1, crc) {
				if time < lastTime || j.incompat&jbdIncompatAsync == 0 {
					j.fs.problem("the journal's last transaction %d has a bad checksum and was left out", seq)
					return done()
				}
				j.fs.problem("the journal's transaction %d has a bad checksum: it and later ones were left out", seq)
				return done()
			}
			crc = ^uint32(0)
			lastTime = time
			seq++
		default:
			return done()
		}
	}
}

// commitOK verifies a commit block: with checksums of version 2 or 3 its own,
// with version 1 that of all blocks of the transaction.
func (j *journal) commitOK(b []byte, v1 bool, crc uint32) bool {
	stored := be.Uint32(b[jbdCommitSumOff:])
	switch {
	case v1:
		typ, size := b[12], b[13]
		return typ == jbdCRC32 && size == 4 && stored == crc || typ == 0 && size == 0 && stored == 0
	case j.csum():
		sum := crc32c(j.seed, b[:jbdCommitSumOff])
		sum = crc32c(sum, []byte{0, 0, 0, 0})
		return crc32c(sum, b[jbdCommitSumOff+4:]) == stored
	}
	return true
}

// walk goes through the complete transactions and passes on descriptor blocks
// (with the place of their first data block) and revoke blocks.
func (j *journal) walk(descriptor func(b []byte, pos, seq uint32) error, revoke func(b []byte, pos, seq uint32) error) error {
	b := make([]byte, j.fs.sb.blockSize)
	pos := j.start
	for seq := j.sequence; seq != j.endSequence; {
		if err := j.read(b, pos); err != nil {
			return err
		}
		at := pos
		pos = j.advance(pos, 1)
		switch be.Uint32(b[4:]) {
		case jbdDescriptor:
			n := 0
			j.tags(b, func(tag) { n++ })
			if descriptor != nil {
				if err := descriptor(b, pos, seq); err != nil {
					return err
				}
			}
			pos = j.advance(pos, n)
		case jbdRevoke:
			if revoke != nil {
				if err := revoke(b, at, seq); err != nil {
					return err
				}
			}
		case jbdCommit:
			seq++
		}
	}
	return nil
}

// revoke collects the records of a revoke block: r_count, u32 at 12, is the
// bytes in use.
func (j *journal) revoke(b []byte, pos, seq uint32) error {
	limit := len(b)
	if j.csum() {
		limit -= jbdTailSize
	}
	n := int64(be.Uint32(b[12:]))
	if n < 16 || n > int64(limit) {
		return j.corrupt(pos, "r_count", "%d bytes", n)
	}
	size := 4
	if j.incompat&jbdIncompat64bit != 0 {
		size = 8
	}
	for at := 16; at+size <= int(n); at += size {
		blk := uint64(be.Uint32(b[at:]))
		if size == 8 {
			blk = be.Uint64(b[at:])
		}
		if _, ok := j.revoked[blk]; !ok && len(j.revoked) >= maxRevoke {
			return formats.Limit(Name, j.sbOff, "r_count", "more than %d revoked blocks", maxRevoke)
		}
		j.revoked[blk] = seq // later transactions come later
	}
	return nil
}

// replayBlocks maps the blocks after a descriptor block.
func (j *journal) replayBlocks(b []byte, pos, seq uint32) error {
	var err error
	var data []byte
	var n [4]byte
	be.PutUint32(n[:], seq)
	j.tags(b, func(t tag) {
		if err != nil {
			return
		}
		at := pos
		pos = j.advance(pos, 1)
		// A block is revoked in all transactions up to that of the record.
		if until, ok := j.revoked[t.blk]; ok && int32(until-seq) >= 0 {
			return
		}
		var src int64
		if src, err = j.pos(at); err != nil {
			return
		}
		if t.blk >= j.fs.sb.blocksCount {
			j.fs.problem("the journal has a block for %d of %d: left out", t.blk, j.fs.sb.blocksCount)
			return
		}
		if j.csum() {
			if data == nil {
				data = make([]byte, len(b))
			}
			if err = j.fs.dev.ReadFull(data, src, "journal block"); err != nil {
				return
			}
			sum := crc32c(crc32c(j.seed, n[:]), data)
			if j.incompat&jbdIncompatCsumV2 != 0 {
				sum &= 0xFFFF
			}
			if sum != t.checksum {
				j.fs.problem("the journal's copy of block %d in transaction %d has a bad checksum: left out", t.blk, seq)
				return
			}
		}
		if t.flags&jbdTagEscape != 0 {
			src = ^src
		}
		j.blocks = append(j.blocks, journaled{t.blk, src})
		if len(j.blocks) >= 2*maxReplay {
			j.compact()
			if len(j.blocks) > maxReplay {
				err = formats.Limit(Name, j.sbOff, "t_blocknr", "more than %d blocks in an unclean journal", maxReplay)
			}
		}
	})
	return err
}

// compact sorts the mapped blocks and keeps the newest copy of each.
func (j *journal) compact() {
	slices.SortStableFunc(j.blocks, func(a, b journaled) int {
		switch {
		case a.blk < b.blk:
			return -1
		case a.blk > b.blk:
			return 1
		}
		return 0
	})
	kept := j.blocks[:0]
	for i, b := range j.blocks {
		if i+1 < len(j.blocks) && j.blocks[i+1].blk == b.blk {
			continue
		}
		kept = append(kept, b)
	}
	j.blocks = kept
}

// orphans counts the inodes on the orphan list, which are linked through
// i_dtime. They have no name, or a size that their blocks have yet to follow:
// neither changes what is read.
func (f *FS) orphans() int {
	n := 0
	for ino := f.sb.lastOrphan; ino != 0 && n < maxOrphans; n++ {
		var in inode
		if _, err := f.readInode(ino, &in); err != nil {
			f.problem("the orphan list is damaged: %v", err)
			break
		}
		ino = in.dtime
	}
	return n
}
