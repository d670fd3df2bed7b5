// Package tarindex reads the members of a tar file in place and writes tar
// files whose bytes depend on nothing but their members.
//
// It is for packages that strangers made: a tar here is a list of named runs
// of bytes. ustar (POSIX.1-2024, pax, "ustar Interchange Format"), the GNU
// dialect (GNU tar manual, "Basic Tar Format": long names, base-256 numbers),
// pax extended headers (path and size) and headers of the seventh edition are
// read; what a package has no use for, and what tars use to surprise, is
// refused: links, devices, sparse members, names outside the package, two
// members of one name, anything after the end.
package tarindex

import (
	"errors"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
)

// Name is the name of the format in errors, unless Options.Format says
// otherwise.
const Name = "tar"

const blockSize = 512 // bytes; headers, and what data is padded to

const (
	// maxMembers bounds headers of every kind. The largest packages in use
	// have some hundred members (chunked disks); at 65,536 the index is a few
	// MiB, and a file of ten million empty members is refused after 32 MiB.
	maxMembers = 65536
	// maxName bounds a member's name in bytes, as PATH_MAX would on its way
	// to a file system; deeper than maxDepth no package goes.
	maxName  = 1024
	maxDepth = 32
	// maxNames bounds the bytes of all names together: 128 a member.
	maxNames = 8 << 20
	// maxExtended bounds the data of one pax or long-name header. Attributes
	// that fill 64 KiB describe no member of a package.
	maxExtended = 64 << 10
	// maxTrailer bounds the zeros from the end of the archive to the end of
	// the file. Tars are padded to their record: 10 KiB, by option up to
	// 1 MiB on tapes.
	maxTrailer = 1 << 20
	// maxNotes bounds what is said about oddities that do no harm.
	maxNotes = 32
	// maxOctal is the largest size eleven octal digits hold: 8 GiB - 1.
	maxOctal = 1<<33 - 1
)

// Offsets and lengths of the fields of a header, in bytes.
const (
	offName, lenName     = 0, 100
	offMode, lenNum      = 100, 8 // mode, uid, gid, devmajor, devminor
	offUID               = 108
	offGID               = 116
	offSize, lenSize     = 124, 12
	offMtime             = 136
	offChksum, lenChksum = 148, 8
	offTypeflag          = 156
	offMagic             = 257 // magic and version, 8 bytes together
	offDevmajor          = 329
	offDevminor          = 337
	offPrefix, lenPrefix = 345, 155
)

// Values of magic and version.
const (
	magicUstar = "ustar\x0000"
	magicGNU   = "ustar  \x00"
)

// dialect is which header the magic announces.
type dialect uint8

const (
	v7 dialect = iota // no magic: name, size and checksum only
	ustar
	gnu
)

// header is the part of a header block that says what follows it.
type header struct {
	dialect  dialect
	typeflag byte
	name     string // with the prefix of ustar
	size     int64
	mtime    int64 // seconds since 1970
}

// Sniff reports whether b, the first 512 bytes of a file, is a tar header
// with a magic number and a right checksum.
func Sniff(b []byte) bool {
	if len(b) < blockSize {
		return false
	}
	b = b[:blockSize]
	return dialectOf(b) != v7 && checksumField(b, dialectOf(b)) == checksum(b)
}

func dialectOf(b []byte) dialect {
	switch string(b[offMagic : offMagic+8]) {
	case magicGNU:
		return gnu
	case "\x00\x00\x00\x00\x00\x00\x00\x00":
		return v7
	}
	if string(b[offMagic:offMagic+6]) == magicUstar[:6] {
		return ustar
	}
	return v7
}

// checksum is the sum of the bytes of a header with its chksum field taken
// for spaces.
func checksum(b []byte) int64 {
	var sum int64
	for i, c := range b {
		if i >= offChksum && i < offChksum+lenChksum {
			c = ' '
		}
		sum += int64(c)
	}
	return sum
}

// checksumField decodes chksum, or returns -1. Under a magic number only the
// two spellings in use are taken, "dddddd\0 " and seven digits with a
// terminator: the field is the one part of a header its sum does not guard.
func checksumField(b []byte, d dialect) int64 {
	f := b[offChksum : offChksum+lenChksum]
	if d != v7 {
		switch {
		case f[6] == 0 && f[7] == ' ':
			f = f[:6]
		case f[7] == 0 || f[7] == ' ':
			f = f[:7]
		default:
			return -1
		}
		for _, c := range f {
			if c < '0' || c > '7' {
				return -1
			}
		}
	}
	n, err := octal(f)
	if err != nil {
		return -1
	}
	return n
}

var errNumber = errors.New("not a number")

// octal decodes digits with spaces before and spaces or NULs after.
func octal(f []byte) (int64, error) {
	s := strings.TrimLeft(string(f), " ")
	s = strings.TrimRight(s, " \x00")
	if s == "" {
		return 0, nil
	}
	var n int64
	for _, c := range []byte(s) {
		if c < '0' || c > '7' || n > 1<<59 {
			return 0, errNumber
		}
		n = n<<3 | int64(c-'0')
	}
	return n, nil
}

// number decodes octal digits or a GNU base-256 number: the first byte 0x80,
// the value big-endian after it. Negative numbers (0xff) are refused.
func number(f []byte) (int64, error) {
	if f[0]&0x80 == 0 {
		return octal(f)
	}
	if f[0] != 0x80 {
		return 0, errNumber
	}
	var n int64
	for _, c := range f[1:] {
		if n >= 1<<55 {
			return 0, errNumber
		}
		n = n<<8 | int64(c)
	}
	return n, nil
}

// text is a field up to its first NUL; ok is false when anything but NULs
// follows that.
func text(f []byte) (s string, ok bool) {
	s, rest, _ := strings.Cut(string(f), "\x00")
	return s, strings.Trim(rest, "\x00") == ""
}

// decode reads a header block that is at off.
func (o *opener) decode(b []byte, off int64) (header, error) {
	h := header{dialect: dialectOf(b), typeflag: b[offTypeflag]}
	want := checksumField(b, h.dialect)
	if sum := checksum(b); want != sum {
		if off == 0 && (h.dialect == v7 || want < 0) {
			return h, formats.Unknown(o.format, -1, "", "no tar header")
		}
		return h, formats.Corrupt(o.format, off+offChksum, "chksum", "%q, the header sums to %o", b[offChksum:offChksum+lenChksum], sum)
	}
	var err error
	if h.size, err = number(b[offSize : offSize+lenSize]); err != nil {
		return h, formats.Corrupt(o.format, off+offSize, "size", "%q", b[offSize:offSize+lenSize])
	}
	if h.mtime, err = number(b[offMtime : offMtime+lenSize]); err != nil {
		h.mtime = 0 // before 1970, or junk: nothing depends on it
	}
	name, ok := text(b[offName : offName+lenName])
	if !ok {
		return h, formats.Corrupt(o.format, off, "name", "NUL inside %q", b[offName:offName+lenName])
	}
	h.name = name
	if h.dialect == ustar && b[offPrefix] != 0 {
		prefix, _ := text(b[offPrefix : offPrefix+lenPrefix]) // star keeps times behind it
		h.name = prefix + "/" + name
	}
	return h, nil
}

// checkName reports what keeps name, a member's name without its decoration,
// from being one; "" when it is good.
func checkName(name string) string {
	switch {
	case name == "":
		return "empty"
	case len(name) > maxName:
		return "long"
	case !utf8.ValidString(name):
		return "not UTF-8"
	case name[0] == '/':
		return "absolute"
	}
	for _, c := range []byte(name) {
		if c < 0x20 || c == 0x7f {
			return "control character"
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "..":
			return "leads outside"
		case "", ".":
			return "empty part"
		}
	}
	if strings.Count(name, "/") >= maxDepth {
		return "deep"
	}
	return ""
}
