package ext4

import (
	"math/bits"

	"imgmaint/formats"
)

// Hash versions in a directory's index root (ext4 doc, "Hash Tree
// Directories").
const (
	hashLegacy  = 0
	hashHalfMD4 = 1
	hashTEA     = 2
	hashSigned  = 3 // from here on the same three with unsigned characters
	hashSip     = 6
)

// dxLookup finds name through the index of a directory; the entry has no inode
// when it is not there. An error means that the index or a leaf is damaged.
func (f *FS) dxLookup(in *inode, name []byte) (found dirent, err error) {
	b, off, err := f.dirBlock(in, 0)
	if err != nil {
		return found, err
	}
	at, count, _, err := f.dxHeader(in, b, off, true)
	if err != nil {
		return found, err
	}
	version, levels := b[28], int(b[30])
	if version < hashSigned && f.sb.flags&flagUnsigned != 0 {
		version += hashSigned
	}
	if version >= hashSip {
		return found, formats.Unsupported(Name, off+28, "hash_version", "%d in directory inode %d", version, in.ino)
	}
	most := maxHtreeLevels - 1
	if f.sb.incompat&incompatLargeDir == 0 {
		most--
	}
	if levels > most {
		return found, formats.Corrupt(Name, off+30, "indirect_levels", "%d in directory inode %d", levels, in.ino)
	}
	hash := dirHash(version, &f.sb.hashSeed, name)

	// One frame for each level: the entries, and the one that was taken.
	type frame struct {
		entries []byte // count of 8 bytes: hash, block
		i       int
	}
	blockAt := func(fr frame) int64 { return int64(le.Uint32(fr.entries[8*fr.i+4:]) & 0x0FFFFFFF) }
	hashAt := func(fr frame, i int) uint32 { return le.Uint32(fr.entries[8*i:]) }
	var frames [maxHtreeLevels]frame
	frames[0].entries = b[at : at+8*count]
	descend := func(level int) error {
		b, off, err := f.dirBlock(in, blockAt(frames[level-1]))
		if err != nil {
			return err
		}
		at, count, _, err := f.dxHeader(in, b, off, false)
		if err != nil {
			return err
		}
		frames[level] = frame{entries: b[at : at+8*count]}
		return nil
	}
	for level := 0; ; level++ {
		fr := &frames[level]
		// The last entry whose hash is at most ours; the first has none.
		lo, hi := 1, len(fr.entries)/8
		for lo < hi {
			m := (lo + hi) / 2
			if hashAt(*fr, m) <= hash {
				lo = m + 1
			} else {
				hi = m
			}
		}
		fr.i = lo - 1
		if level == levels {
			break
		}
		if err := descend(level + 1); err != nil {
			return found, err
		}
	}
	// A leaf appears once: more steps than blocks is a loop.
	for steps := in.size >> f.sb.blockBits; ; steps-- {
		if steps < 0 {
			return found, formats.Corrupt(Name, in.off, "dx_entry", "the index of directory inode %d is a loop", in.ino)
		}
		b, off, err := f.dirBlock(in, blockAt(frames[levels]))
		if err != nil {
			return found, err
		}
		if found, err = f.searchBlock(in, b, off, name); err != nil || found.ino != 0 {
			return found, err
		}
		// Names of one hash may go on in the next leaf, whose hash then has
		// the low bit set.
		level := levels
		for level >= 0 && frames[level].i+1 >= len(frames[level].entries)/8 {
			level--
		}
		if level < 0 {
			return found, nil
		}
		frames[level].i++
		if h := hashAt(frames[level], frames[level].i); h != hash|1 {
			return found, nil
		}
		for ; level < levels; level++ {
			if err := descend(level + 1); err != nil {
				return found, err
			}
		}
	}
}

// dirHash computes the hash of a name in one of the six versions, without its
// low bit. A seed of zeros is the default one.
func dirHash(version uint8, seed *[4]uint32, name []byte) uint32 {
	signed := version < hashSigned
	var h uint32
	switch version % hashSigned {
	case hashLegacy:
		h = legacyHash(name, signed)
	default:
		state := [4]uint32{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476} // of MD4
		if *seed != [4]uint32{} {
			state = *seed
		}
		words, mix, out := 8, halfMD4, 1
		if version%hashSigned == hashTEA {
			words, mix, out = 4, tea, 0
		}
		for len(name) > 0 {
			var in [8]uint32
			packName(in[:words], name, signed)
			mix(&state, &in)
			name = name[min(len(name), 4*words):]
		}
		h = state[out]
	}
	h &^= 1
	if h == 0xFFFFFFFE { // means "end of directory" to NFS
		h = 0xFFFFFFFC
	}
	return h
}

// char widens a character as the machine that made the index did.
func char(c byte, signed bool) uint32 {
	if signed {
		return uint32(int32(int8(c)))
	}
	return uint32(c)
}

func legacyHash(name []byte, signed bool) uint32 {
	cur, prev := uint32(0x12A3FE2D), uint32(0x37ABE8F9)
	for _, c := range name {
		next := prev + (cur ^ char(c, signed)*7152373)
		if next&0x80000000 != 0 {
			next -= 0x7FFFFFFF
		}
		cur, prev = next, cur
	}
	return cur << 1
}

// packName fills words from the start of name, four characters in each, and
// pads with the length of what was left.
func packName(words []uint32, name []byte, signed bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	name = name[:min(len(name), 4*len(words))]
	for i := range words {
		v := pad
		for _, c := range name[:min(4, len(name))] {
			v = char(c, signed) + v<<8
		}
		name = name[min(4, len(name)):]
		words[i] = v
	}
}

// tea mixes four words into the first two of the state with 16 rounds of the
// Tiny Encryption Algorithm.
func tea(state *[4]uint32, in *[8]uint32) {
	x, y, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9E3779B9
		x += (y<<4 + in[0]) ^ (y + sum) ^ (y>>5 + in[1])
		y += (x<<4 + in[2]) ^ (x + sum) ^ (x>>5 + in[3])
	}
	state[0] += x
	state[1] += y
}

// halfMD4 mixes eight words into the state with three rounds of eight steps
// of MD4 (RFC 1320, section 3.4, on half the input).
func halfMD4(state *[4]uint32, in *[8]uint32) {
	order := [3][8]int{{0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 5, 7, 0, 2, 4, 6}, {3, 7, 2, 6, 1, 5, 0, 4}}
	shift := [3][4]int{{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}}
	add := [3]uint32{0, 0x5A827999, 0x6ED9EBA1}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for round := range 3 {
		for step := range 8 {
			var mixed uint32
			switch round {
			case 0:
				mixed = d ^ b&(c^d)
			case 1:
				mixed = b&c + (b^c)&d
			default:
				mixed = b ^ c ^ d
			}
			a = bits.RotateLeft32(a+mixed+in[order[round][step]]+add[round], shift[round][step%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
