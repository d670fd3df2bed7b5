package pgp

import (
	"encoding/binary"

	"imgmaint/formats"
)

// A rawPacket is one packet of a file, its body not looked into.
type rawPacket struct {
	tag  byte
	off  int64 // of the header in the binary (dearmored) input
	body []byte
}

// nextPacket cuts the packet at off from b. Old and new headers are read (RFC
// 9580 section 4.2); partial and indeterminate lengths, which only data packets
// may have, are corrupt.
func nextPacket(b []byte, off int) (p rawPacket, next int, err error) {
	start := off
	corrupt := func(msg string, args ...any) (rawPacket, int, error) {
		return rawPacket{}, 0, formats.Corrupt(format, int64(start), "packet", msg, args...)
	}
	head := b[off]
	off++
	if head&0x80 == 0 {
		return corrupt("header octet 0x%02x", head)
	}
	var n uint64
	rest := b[off:]
	size := 0 // of the length
	if head&0x40 != 0 {
		p.tag = head & 0x3f
		if len(rest) == 0 {
			return corrupt("no length")
		}
		switch l := rest[0]; {
		case l < 192:
			n, size = uint64(l), 1
		case l < 224:
			if len(rest) < 2 {
				return corrupt("length is cut")
			}
			n, size = uint64(l-192)<<8+uint64(rest[1])+192, 2
		case l == 255:
			if len(rest) < 5 {
				return corrupt("length is cut")
			}
			n, size = uint64(binary.BigEndian.Uint32(rest[1:])), 5
		default:
			return corrupt("partial length")
		}
	} else {
		p.tag = head >> 2 & 0xf
		size = 1 << (head & 3)
		if size == 8 {
			return corrupt("indeterminate length")
		}
		if len(rest) < size {
			return corrupt("length is cut")
		}
		for _, c := range rest[:size] {
			n = n<<8 | uint64(c)
		}
	}
	rest = rest[size:]
	if n > uint64(len(rest)) {
		return corrupt("length %d is past the end", n)
	}
	if n > maxPacketBody {
		return rawPacket{}, 0, formats.Limit(format, int64(start), "packet", "length %d", n)
	}
	p.off, p.body = int64(start), rest[:n:n]
	return p, off + size + int(n), nil
}

// checkTag refuses packets that have no place among signatures and keys. It
// reports whether the packet is to be skipped.
func checkTag(p rawPacket) (skip bool, err error) {
	switch {
	case p.tag == tagMarker:
		if string(p.body) != "PGP" {
			return false, formats.Corrupt(format, p.off, "marker", "")
		}
		return true, nil
	case p.tag == tagPadding || p.tag >= tagFirstOptional:
		return true, nil
	case p.tag == tagCompressed:
		return false, formats.Unsupported(format, p.off, "packet", "compressed data")
	}
	return false, nil
}

// A reader of integers. After a failure everything is empty and bad is set.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n > len(f.b) {
		f.b, f.bad = nil, true
		return make([]byte, min(n, 8))
	}
	b := f.b[:n:n]
	f.b = f.b[n:]
	return b
}

func (f *fields) u8() byte    { return f.take(1)[0] }
func (f *fields) u16() uint16 { return binary.BigEndian.Uint16(f.take(2)) }
func (f *fields) u32() uint32 { return binary.BigEndian.Uint32(f.take(4)) }

// mpi reads a multiprecision integer (RFC 9580 section 3.2) and returns its
// length in bits and its bytes. The bit count has to be right, or to be that of
// whole octets, which GnuPG 2.1 wrote for octet strings that begin with zeros.
func (f *fields) mpi() (bits int, b []byte) {
	bits = int(f.u16())
	b = f.take((bits + 7) / 8)
	if f.bad {
		return 0, nil
	}
	if bits%8 != 0 && b[0]>>(uint(bits-1)%8) != 1 {
		f.bad = true
		return 0, nil
	}
	return bits, b
}
