package pgp

import (
	"bytes"
	"encoding/base64"
	"strings"

	"imgmaint/formats"
)

// Armor types (RFC 9580 section 6.2.1).
const (
	armorSignature = "PGP SIGNATURE"
	armorPublic    = "PGP PUBLIC KEY BLOCK"
	armorSecret    = "PGP PRIVATE KEY BLOCK"
)

const (
	armorBegin  = "-----BEGIN "
	armorEnd    = "-----END "
	armorDashes = "-----"
	blanks      = " \t\r"
)

// A line of text with its place.
type lines struct {
	b   []byte
	off int // of the next line
}

// next returns the next line without its line feed, and its offset.
func (l *lines) next() (line []byte, off int, ok bool) {
	off = l.off
	if off >= len(l.b) {
		return nil, off, false
	}
	rest := l.b[off:]
	if i := bytes.IndexByte(rest, '\n'); i >= 0 {
		l.off += i + 1
		return rest[:i], off, true
	}
	l.off = len(l.b)
	return rest, off, true
}

// armorLine tells whether a line is "-----BEGIN type-----", and its type.
func armorLine(line []byte) (typ string, ok bool) {
	s, ok := bytes.CutPrefix(line, []byte(armorBegin))
	if !ok {
		return "", false
	}
	s, ok = bytes.CutSuffix(bytes.TrimRight(s, blanks), []byte(armorDashes))
	return string(s), ok
}

// dearmor reads one armored block whose first line, already read, had typ. A
// checksum line may be missing; a wrong one is corrupt, as it is for GnuPG.
// (RFC 9580 section 6.1 would have it ignored. Nothing rests on it; but a file
// that was damaged should be called damaged.)
func dearmor(l *lines, typ string) ([]byte, error) {
	start := l.off
	corrupt := func(off int, msg string, args ...any) ([]byte, error) {
		return nil, formats.Corrupt(format, int64(off), "armor", msg, args...)
	}
	for { // headers, up to an empty line
		line, off, ok := l.next()
		if !ok {
			return corrupt(start, "no end")
		}
		line = bytes.TrimRight(line, blanks)
		if len(line) == 0 {
			break
		}
		key, _, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(key) == 0 || bytes.ContainsAny(key, " \t-") {
			return corrupt(off, "not a header line")
		}
	}
	var body []byte
	sum := ""
	for {
		line, off, ok := l.next()
		if !ok {
			return corrupt(start, "no end")
		}
		line = bytes.TrimRight(line, blanks)
		if bytes.HasPrefix(line, []byte(armorEnd)) {
			if string(line) != armorEnd+typ+armorDashes {
				return corrupt(off, "end does not match begin")
			}
			break
		}
		switch {
		case sum != "":
			return corrupt(off, "text after the checksum")
		case len(line) == 5 && line[0] == '=':
			sum = string(line[1:])
		case bytes.ContainsRune(line, '\r'): // encoding/base64 would pass over it
			return corrupt(off, "carriage return in a line")
		default:
			body = append(body, line...)
		}
	}
	out := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Strict().Decode(out, body)
	if err != nil {
		return corrupt(start, "%v", err)
	}
	if n == 0 {
		return corrupt(start, "empty")
	}
	if sum != "" && sum != checksum(out[:n]) {
		return corrupt(start, "wrong checksum")
	}
	return out[:n], nil
}

// crcTable has the CRC-24 of each octet.
var crcTable = func() (t [256]uint32) {
	for i := range t {
		crc := uint32(i) << 16
		for range 8 {
			crc <<= 1
			if crc&0x1000000 != 0 {
				crc ^= 0x1864cfb
			}
		}
		t[i] = crc
	}
	return t
}()

// checksum is the CRC-24 of RFC 9580 section 6.1.1 in base64.
func checksum(b []byte) string {
	crc := uint32(0xb704ce)
	for _, c := range b {
		crc = crc<<8&0xffffff ^ crcTable[byte(crc>>16)^c]
	}
	return base64.StdEncoding.EncodeToString([]byte{byte(crc >> 16), byte(crc >> 8), byte(crc)})
}

// enarmor writes an armored block as GnuPG does: 64 columns and a checksum, no
// headers.
func enarmor(typ string, b []byte) []byte {
	var w strings.Builder
	w.WriteString(armorBegin + typ + armorDashes + "\n\n")
	s := base64.StdEncoding.EncodeToString(b)
	for len(s) > 64 {
		w.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	w.WriteString(s + "\n=" + checksum(b) + "\n" + armorEnd + typ + armorDashes + "\n")
	return []byte(w.String())
}

// isBinary tells packets from armor: a packet begins with bit 7 set.
func isBinary(b []byte) bool { return len(b) > 0 && b[0]&0x80 != 0 }

// signatureBlock returns the packets of a signature file. Besides the armored
// block there may be nothing but white space.
func signatureBlock(b []byte) ([]byte, error) {
	if len(b) > maxSignatureFile {
		return nil, formats.Limit(format, -1, "signature", "%d bytes, at most %d", len(b), maxSignatureFile)
	}
	if isBinary(b) {
		return b, nil
	}
	l := &lines{b: b}
	var out []byte
	for {
		line, off, ok := l.next()
		if !ok {
			break
		}
		typ, begin := armorLine(line)
		switch {
		case !begin && len(bytes.TrimRight(line, blanks)) == 0:
		case !begin:
			if out == nil {
				return nil, formats.Unknown(format, int64(off), "signature", "neither packets nor armor")
			}
			return nil, formats.Corrupt(format, int64(off), "armor", "text after the signature")
		case out != nil:
			return nil, formats.Corrupt(format, int64(off), "armor", "a second block")
		case typ != armorSignature:
			return nil, formats.Corrupt(format, int64(off), "armor", "%.40q in place of a signature", typ)
		default:
			var err error
			if out, err = dearmor(l, typ); err != nil {
				return nil, err
			}
		}
	}
	if out == nil {
		return nil, formats.Unknown(format, -1, "signature", "empty")
	}
	return out, nil
}
