package vhd

import (
	"encoding/binary"
	"net/url"
	"strings"
	"unicode/utf16"

	"imgmaint/formats"
)

// A parentName is one of the names a differencing disk has for its parent.
type parentName struct {
	code     string // platform code, "name" for parent_unicode_name
	name     string
	off, end int64 // where it lies in the file; 0, 0 within the header
}

// Platform codes of parent locators, the best first. A relative path outlives
// a move of the folder and says nothing about the host it came from.
var platforms = []string{
	"W2ru", // relative path on Windows, UTF-16; little-endian in practice
	"Wi2r", // relative path on Windows, deprecated; one byte a character
	"MacX", // file URL, UTF-8 (RFC 2396); what Xen's tools write
	"W2ku", // absolute path on Windows, UTF-16
	"Wi2k", // absolute path on Windows, deprecated
	"name", // parent_unicode_name of the header, UTF-16 big-endian
}

// parseParent reads the names of the parent.
func (l *layout) parseParent() error {
	at := int64(l.foot.dataOffset)
	if l.head.parentID == l.foot.uniqueID {
		return corrupt(at+headParentID, "parent_unique_id", "the disk is its own parent")
	}
	found := map[string]parentName{}
	for i, loc := range l.head.locators {
		code := string(loc.platform[:])
		if code == "\x00\x00\x00\x00" {
			continue
		}
		field := "parent_locator_entry_" + string(rune('1'+i))
		if loc.dataOffset > uint64(l.f.Size) {
			return corrupt(at+headLocators+24*int64(i), field, "platform_data_offset %#x in a file of %d bytes", loc.dataOffset, l.f.Size)
		}
		off := int64(loc.dataOffset)
		b, err := l.f.Bytes(off, int64(loc.dataLength), field, maxLocator)
		if err != nil {
			return err
		}
		p := parentName{code: code, off: off, end: off + int64(loc.dataLength)}
		switch code {
		case "W2ru":
			p.name = relative(decode16(b, binary.LittleEndian))
		case "W2ku":
			p.name = decode16(b, binary.LittleEndian)
		case "Wi2r":
			p.name = relative(decode8(b))
		case "Wi2k":
			p.name = decode8(b)
		case "MacX":
			p.name = fromURL(decode8(b))
		}
		if _, dup := found[code]; !dup {
			found[code] = p
		}
	}
	if s := decode16(l.head.parentName, binary.BigEndian); s != "" {
		found["name"] = parentName{code: "name", name: s}
	}
	for _, code := range platforms {
		if p, ok := found[code]; ok && p.name != "" {
			l.parents = append(l.parents, p)
		}
	}
	return nil
}

// reference is the parent as the best of its names has it.
func (l *layout) reference() formats.Reference {
	ref := formats.Reference{Kind: formats.RefParent, Format: QemuName, ID: formatID(l.head.parentID)}
	if len(l.parents) > 0 {
		ref.Name = l.parents[0].name
	}
	return ref
}

// decode16 decodes UTF-16 up to the first NUL; what is not UTF-16 becomes
// U+FFFD.
func decode16(b []byte, order binary.ByteOrder) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := order.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// decode8 cuts b at the first NUL; what is not UTF-8 becomes U+FFFD.
func decode8(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.ToValidUTF8(s, "\uFFFD")
}

// relative turns a relative Windows path into one with slashes: a file name on
// Windows cannot hold a backslash.
func relative(s string) string {
	return strings.TrimPrefix(strings.ReplaceAll(s, `\`, "/"), "./")
}

// fromURL returns the path of a file URL: "file://./base.vhd" is base.vhd
// beside the child, "file:///a/b.vhd" is absolute. Anything else is returned
// as it is.
func fromURL(s string) string {
	rest, ok := strings.CutPrefix(s, "file://")
	if !ok {
		return s
	}
	if p, err := url.PathUnescape(rest); err == nil {
		rest = p
	}
	rest = strings.TrimPrefix(rest, "localhost")
	return strings.TrimPrefix(rest, "./")
}

// encode16 is the inverse of decode16, without a NUL.
func encode16(s string, order binary.AppendByteOrder) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, c)
	}
	return b
}
