package ext4

import (
	"strings"
	"unicode/utf8"
)

// The code points that stand for bytes 0x80 to 0xff in escaped names.
const (
	escapeFirst = 0xEF80
	escapeLast  = 0xEFFF
)

// EscapeName returns a name from disk as a valid UTF-8 string, as the methods
// of FS show it. Valid UTF-8 without code points from U+EF80 to U+EFFF is
// returned unchanged.
func EscapeName(raw []byte) string {
	if isPlain(raw) {
		return string(raw)
	}
	var b strings.Builder
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		if r == utf8.RuneError && n == 1 || r >= escapeFirst && r <= escapeLast {
			for _, c := range raw[:n] {
				b.WriteRune(escapeFirst + rune(c) - 0x80)
			}
		} else {
			b.Write(raw[:n])
		}
		raw = raw[n:]
	}
	return b.String()
}

// isPlain reports whether raw is its own escaped form.
func isPlain(raw []byte) bool {
	ascii := true
	for _, c := range raw {
		if c >= 0x80 {
			ascii = false
			break
		}
	}
	if ascii {
		return true
	}
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		if r == utf8.RuneError && n == 1 || r >= escapeFirst && r <= escapeLast {
			return false
		}
		raw = raw[n:]
	}
	return true
}

// UnescapeName returns the bytes on disk that EscapeName shows as name; ok is
// false when it shows none so.
func UnescapeName(name string) (raw []byte, ok bool) {
	raw = make([]byte, 0, len(name))
	escaped := false
	for i, r := range name {
		switch {
		case r >= escapeFirst && r <= escapeLast:
			raw = append(raw, byte(r-escapeFirst+0x80))
			escaped = true
		case r == utf8.RuneError:
			_, n := utf8.DecodeRuneInString(name[i:])
			if n == 1 {
				return nil, false
			}
			raw = append(raw, name[i:i+n]...)
		default:
			raw = utf8.AppendRune(raw, r)
		}
	}
	// One name on disk has one escaped form.
	if escaped && EscapeName(raw) != name {
		return nil, false
	}
	return raw, true
}
