package ext4

import (
	"bytes"

	"imgmaint/formats"
)

// xattrPrefix is the beginning of a name by e_name_index (ext4 doc, "Extended
// Attributes"). Linux shows no attributes of other indexes: those of
// encryption contexts (9) and of Lustre (5) are left out here too.
var xattrPrefix = map[uint8]string{
	1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.",
	6: "security.", 7: "system.", 8: "system.richacl", 10: "gnu.",
}

const (
	xattrIndexAccess  = 2
	xattrIndexDefault = 3
	xattrIndexSystem  = 7
	xattrHeaderSize   = 32 // of a block
	xattrEntrySize    = 16 // before the name
	// maxXattrBytes is what the values of one file's attributes may take in
	// memory together.
	maxXattrBytes = 4 << 20
)

// An xattrEntry is a decoded ext4_xattr_entry with its place.
type xattrEntry struct {
	off       int64  // on disk
	index     uint8  // e_name_index, u8 at 1
	valueOff  int    // e_value_offs, u16 at 2
	valueInum uint32 // e_value_inum, u32 at 4
	valueSize uint32 // e_value_size, u32 at 8
	hash      uint32 // e_hash, u32 at 12
	name      []byte // e_name, without the prefix
	value     []byte // when it is not in an inode
}

// parseXattrs calls fn for the entries that start at pos in b, which is read
// from off on disk; value offsets count from the start of values.
func parseXattrs(b []byte, pos int, values []byte, off int64, fn func(xattrEntry) error) error {
	for n := 0; ; n++ {
		at := off + int64(pos)
		if len(b)-pos < 4 || n > maxXattrs {
			return formats.Corrupt(Name, at, "ext4_xattr_entry", "no end")
		}
		if le.Uint32(b[pos:]) == 0 {
			return nil
		}
		e := b[pos:]
		if len(e) < xattrEntrySize || xattrEntrySize+int(e[0]) > len(e) {
			return formats.Corrupt(Name, at, "e_name_len", "%d, %d bytes left", e[0], len(e))
		}
		x := xattrEntry{off: at, index: e[1], valueOff: int(le.Uint16(e[2:])), valueInum: le.Uint32(e[4:]),
			valueSize: le.Uint32(e[8:]), hash: le.Uint32(e[12:]), name: e[xattrEntrySize : xattrEntrySize+int(e[0])]}
		if bytes.IndexByte(x.name, 0) >= 0 {
			return formats.Corrupt(Name, at+xattrEntrySize, "e_name", "%q", x.name)
		}
		if x.valueInum == 0 && x.valueSize > 0 {
			if x.valueOff > len(values) || x.valueSize > uint32(len(values)-x.valueOff) {
				return formats.Corrupt(Name, at+2, "e_value_offs", "%d bytes at %d of %d", x.valueSize, x.valueOff, len(values))
			}
			x.value = values[x.valueOff:][:x.valueSize]
		}
		if err := fn(x); err != nil {
			return err
		}
		pos += (xattrEntrySize + len(x.name) + 3) &^ 3
	}
}

// bodyXattrs calls fn for the attributes in the inode itself, behind its
// fields.
func bodyXattrs(in *inode, raw []byte, fn func(xattrEntry) error) error {
	start := minInodeSize + int(in.extraISize)
	if in.extraISize == 0 || start+4 > len(raw) || le.Uint32(raw[start:]) != xattrMagic {
		return nil
	}
	b := raw[start+4:]
	return parseXattrs(b, 0, b, in.off+int64(start)+4, fn)
}

// inlineData returns the contents kept in the inode: all 60 bytes of i_block,
// then the attribute system.data.
func (f *FS) inlineData(in *inode, raw []byte) ([]byte, error) {
	data := bytes.Clone(in.block[:])
	err := bodyXattrs(in, raw, func(x xattrEntry) error {
		if x.index == xattrIndexSystem && string(x.name) == "data" {
			if x.valueInum != 0 {
				return formats.Corrupt(Name, x.off+4, "e_value_inum", "%d for inline data", x.valueInum)
			}
			data = append(data[:inlineInBlock], x.value...)
		}
		return nil
	})
	return data, err
}

// xattrs reads the extended attributes of inode ino. On an error it also
// returns those it could read.
func (f *FS) xattrs(ino uint32) ([]formats.Xattr, error) {
	var in inode
	raw, err := f.readInode(ino, &in)
	if err != nil {
		return nil, err
	}
	var list []formats.Xattr
	var first error
	total := 0
	add := func(x xattrEntry) error {
		prefix, ok := xattrPrefix[x.index]
		if !ok || x.index == xattrIndexSystem && string(x.name) == "data" && in.flags&flagInlineData != 0 {
			return nil
		}
		total += int(min(x.valueSize, maxXattrInode+1)) + len(x.name)
		if total > maxXattrBytes {
			return formats.Limit(Name, x.off+8, "e_value_size", "more than %d bytes of attributes in inode %d", maxXattrBytes, ino)
		}
		value := bytes.Clone(x.value)
		var err error
		if x.valueInum != 0 {
			value, err = f.xattrInode(&in, &x)
		}
		if err == nil && (x.index == xattrIndexAccess || x.index == xattrIndexDefault) {
			value, err = decodeACL(value, x.off)
		}
		if err != nil {
			if first == nil {
				first = err
			}
			return nil
		}
		if value == nil {
			value = []byte{}
		}
		list = append(list, formats.Xattr{Name: prefix + string(x.name), Value: value})
		return nil
	}
	err = bodyXattrs(&in, raw, add)
	if err != nil && first == nil {
		first = err
	}
	if in.fileACL != 0 {
		b, off, err := f.xattrBlock(&in)
		if err == nil {
			err = parseXattrs(b, xattrHeaderSize, b, off, add)
		}
		if err != nil && first == nil {
			first = err
		}
	}
	return list, first
}

// xattrBlock returns the block of attributes of in, verified.
func (f *FS) xattrBlock(in *inode) (b []byte, off int64, err error) {
	s := f.sb
	if in.fileACL < uint64(s.firstDataBlock) || in.fileACL >= s.blocksCount {
		return nil, 0, formats.Corrupt(Name, in.off+0x68, "i_file_acl", "block %d of %d in inode %d", in.fileACL, s.blocksCount, in.ino)
	}
	off = int64(in.fileACL) << s.blockBits
	b, checked, err := f.metaBlock(in.fileACL, "attribute block")
	if err != nil || checked == checkedXattr {
		return b, off, err
	}
	if m := le.Uint32(b); m != xattrMagic {
		return nil, 0, formats.Corrupt(Name, off, "h_magic", "%#x for inode %d", m, in.ino)
	}
	if n := le.Uint32(b[8:]); n != 1 {
		return nil, 0, formats.Corrupt(Name, off+8, "h_blocks", "%d for inode %d", n, in.ino)
	}
	if le.Uint32(b[4:]) == 0 {
		return nil, 0, formats.Corrupt(Name, off+4, "h_refcount", "0 for inode %d", in.ino)
	}
	if s.metadataCsum() {
		if got, sum := le.Uint32(b[0x10:]), s.xattrBlockChecksum(in.fileACL, b); got != sum {
			return nil, 0, formats.Corrupt(Name, off+0x10, "h_checksum", "%#x, computed %#x for inode %d", got, sum, in.ino)
		}
	}
	f.blocks.mark(in.fileACL, checkedXattr)
	return b, off, nil
}

// xattrInode reads the value that x keeps in an inode of its own.
func (f *FS) xattrInode(owner *inode, x *xattrEntry) ([]byte, error) {
	if f.sb.incompat&incompatEAInode == 0 {
		return nil, formats.Corrupt(Name, x.off+4, "e_value_inum", "%d without the feature ea_inode", x.valueInum)
	}
	if x.valueSize > maxXattrInode {
		return nil, formats.Limit(Name, x.off+8, "e_value_size", "%d bytes, at most %d", x.valueSize, maxXattrInode)
	}
	var in inode
	raw, err := f.readInode(x.valueInum, &in)
	if err != nil {
		return nil, err
	}
	if in.flags&flagEAInode == 0 || in.mode&modeFmt != modeReg || in.size != int64(x.valueSize) {
		return nil, formats.Corrupt(Name, x.off+4, "e_value_inum", "inode %d is not a value of %d bytes", x.valueInum, x.valueSize)
	}
	// The old form by Lustre has the owner where the new has hashes.
	old := uint32(in.mtime.sec) == owner.ino && in.generation == owner.generation
	valueHash := le.Uint32(raw[0x8:]) // i_atime
	in.flags &^= flagEncrypt
	file, err := f.openFile("", &in, raw)
	if err != nil {
		return nil, err
	}
	b := make([]byte, x.valueSize)
	if n, err := file.ReadAt(b, 0); n < len(b) {
		return nil, err
	}
	if !old {
		if sum := crc32c(f.sb.csumSeed, b); sum != valueHash {
			return nil, formats.Corrupt(Name, in.off+0x8, "i_atime", "value hash %#x, computed %#x in inode %d", valueHash, sum, in.ino)
		}
		var word [4]byte
		le.PutUint32(word[:], valueHash)
		if x.hash != xattrHash(x.name, word[:], false) && x.hash != xattrHash(x.name, word[:], true) {
			return nil, formats.Corrupt(Name, x.off+12, "e_hash", "%#x", x.hash)
		}
	}
	return b, nil
}

// xattrHash computes e_hash of a name without prefix and a value. Machines
// with signed characters once computed another one for names beyond ASCII.
func xattrHash(name, value []byte, signed bool) uint32 {
	var h uint32
	for _, c := range name {
		h = h<<5 ^ h>>27 ^ char(c, signed)
	}
	for len(value) > 0 {
		var w [4]byte
		value = value[copy(w[:], value):]
		h = h<<16 ^ h>>16 ^ le.Uint32(w[:])
	}
	return h
}

// decodeACL converts a POSIX ACL from its form on disk (version 1, short
// entries where there is no id) to the one that getxattr(2) returns (version
// 2), which is what archives and other systems understand.
func decodeACL(b []byte, off int64) ([]byte, error) {
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, formats.Corrupt(Name, off, "a_version", "an ACL of %d bytes", len(b))
	}
	out := le.AppendUint32(make([]byte, 0, 4+2*len(b)), 2)
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, formats.Corrupt(Name, off, "e_tag", "%d bytes left in an ACL", len(b))
		}
		out = append(out, b[:4]...)
		switch tag := le.Uint16(b); tag {
		case 0x01, 0x04, 0x10, 0x20: // owner, owning group, mask, others
			out = le.AppendUint32(out, ^uint32(0))
			b = b[4:]
		case 0x02, 0x08: // a user, a group
			if len(b) < 8 {
				return nil, formats.Corrupt(Name, off, "e_id", "%d bytes left in an ACL", len(b))
			}
			out = append(out, b[4:8]...)
			b = b[8:]
		default:
			return nil, formats.Corrupt(Name, off, "e_tag", "%#x in an ACL", tag)
		}
	}
	return out, nil
}
