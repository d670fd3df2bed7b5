// Package manifest reads and writes lists of checksums in every form packages
// carry them:
//
//	da39a3ee...  name            GNU coreutils sha1sum(1), text mode
//	da39a3ee... *name            the same, binary mode
//	SHA1 (name) = da39a3ee...    BSD md5(1), sha1sum --tag
//	SHA1(name)= da39a3ee...      OVF, DSP0243 2.1.1, 5.1; openssl dgst
//	name 1048576 d41d8cd9...     XVM 2 as Enomaly's producer wrote it
//
// A list is a stranger's word: it is checked for form and size here, and
// against members and signatures by the caller.
package manifest

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
)

// Name is the name of the format in errors, unless Options.Format says
// otherwise.
const Name = "manifest"

const (
	// MaxSize bounds a list in bytes: room for MaxEntries lines with a
	// SHA-512 digest and a name of usual length.
	MaxSize = 16 << 20
	// MaxEntries bounds its lines, to what tarindex takes for members.
	MaxEntries = 65536
	// maxName bounds a name in bytes, as tarindex does.
	maxName = 1024
	// maxLine is the longest line: a name in GNU escapes, twice its length,
	// with the longest digest and room for the rest.
	maxLine = 2*maxName + 128 + 64
)

// A Form is the way a line is written.
type Form string

const (
	GNU       Form = "gnu"        // hash, two spaces, name
	GNUBinary Form = "gnu-binary" // hash, space, asterisk, name
	BSD       Form = "bsd"        // SHA1 (name) = hash
	OVF       Form = "ovf"        // SHA1(name)= hash
	XVM2      Form = "xvm2"       // name, size, hash
)

// An Algorithm is a digest algorithm by its usual lower-case name.
type Algorithm string

const (
	MD5    Algorithm = "md5"
	SHA1   Algorithm = "sha1"
	SHA224 Algorithm = "sha224"
	SHA256 Algorithm = "sha256"
	SHA384 Algorithm = "sha384"
	SHA512 Algorithm = "sha512"
)

// algorithms are those known, with the length of their digests in bytes.
var algorithms = []struct {
	name  Algorithm
	bytes int
}{{MD5, 16}, {SHA1, 20}, {SHA224, 28}, {SHA256, 32}, {SHA384, 48}, {SHA512, 64}}

// Size is the length of a digest in bytes; 0 for an unknown algorithm.
func (a Algorithm) Size() int {
	for _, k := range algorithms {
		if k.name == a {
			return k.bytes
		}
	}
	return 0
}

// New returns a hash of the algorithm, nil for an unknown one.
func (a Algorithm) New() hash.Hash {
	switch a {
	case MD5:
		return md5.New()
	case SHA1:
		return sha1.New()
	case SHA224:
		return sha256.New224()
	case SHA256:
		return sha256.New()
	case SHA384:
		return sha512.New384()
	case SHA512:
		return sha512.New()
	}
	return nil
}

// Weak reports whether collisions of the algorithm can be made: its digests
// guard against accidents only.
func (a Algorithm) Weak() bool { return a == MD5 || a == SHA1 }

// byLength is the algorithm whose digest is written in n hexadecimal digits.
func byLength(n int) Algorithm {
	for _, k := range algorithms {
		if 2*k.bytes == n {
			return k.name
		}
	}
	return ""
}

// byLabel is the algorithm that BSD and OVF lines and openssl call label:
// SHA1, SHA-1, SHA2-256.
func byLabel(label string) Algorithm {
	s := strings.ToLower(label)
	switch {
	case strings.HasPrefix(s, "sha2-"):
		s = "sha" + s[5:]
	case strings.HasPrefix(s, "sha-"):
		s = "sha" + s[4:]
	}
	if a := Algorithm(s); a.Size() > 0 {
		return a
	}
	return ""
}

// An Entry is one line.
type Entry struct {
	Name      string    `json:"name"` // without a leading "./"
	Algorithm Algorithm `json:"algorithm"`
	Digest    string    `json:"digest"` // hexadecimal, lower case
	Size      int64     `json:"size"`   // -1 where the form has none
	Form      Form      `json:"form"`
	Off       int64     `json:"-"` // of the line in the list
}

// Options change what Parse says.
type Options struct {
	// Format names the package format in errors; "" is "manifest".
	Format string
}

// Parse reads a list. Forms may be mixed. Empty lines are passed over; any
// other line of no known form is ErrCorrupt, as are two lines for one name
// with one algorithm. A list over MaxSize or MaxEntries is ErrLimit, an
// algorithm that is not known is errors.ErrUnsupported.
func Parse(b []byte, opts *Options) ([]Entry, error) {
	format := Name
	if opts != nil && opts.Format != "" {
		format = opts.Format
	}
	if len(b) > MaxSize {
		return nil, formats.Limit(format, -1, "manifest", "%d bytes, at most %d", len(b), MaxSize)
	}
	type key struct {
		name string
		alg  Algorithm
	}
	var entries []Entry
	seen := map[key]bool{}
	for off := 0; off < len(b); {
		line := b[off:]
		next := len(b)
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line, next = line[:i], off+i+1
		}
		line = bytes.TrimSuffix(line, []byte{'\r'})
		if len(line) == 0 {
			off = next
			continue
		}
		if len(line) > maxLine {
			return nil, formats.Limit(format, int64(off), "line", "%d bytes, at most %d", len(line), maxLine)
		}
		if len(entries) == MaxEntries {
			return nil, formats.Limit(format, int64(off), "line", "more than %d", MaxEntries)
		}
		e, err := parseLine(string(line), format, int64(off))
		if err != nil {
			return nil, err
		}
		if k := (key{e.Name, e.Algorithm}); seen[k] {
			return nil, formats.Corrupt(format, int64(off), "line", "second %s of %.100q", e.Algorithm, e.Name)
		} else {
			seen[k] = true
		}
		entries = append(entries, e)
		off = next
	}
	return entries, nil
}

func parseLine(line, format string, off int64) (Entry, error) {
	bad := formats.Corrupt(format, off, "line", "of no known form: %.100q", line)
	e, label, ok := splitLine(line)
	if !ok {
		return Entry{}, bad
	}
	if label != "" {
		if e.Algorithm = byLabel(label); e.Algorithm == "" {
			return Entry{}, formats.Unsupported(format, off, "algorithm", "%.20q", label)
		}
	} else if e.Algorithm = byLength(len(e.Digest)); e.Algorithm == "" {
		return Entry{}, bad
	}
	if d, err := hex.DecodeString(e.Digest); err != nil || len(d) != e.Algorithm.Size() {
		return Entry{}, formats.Corrupt(format, off, "digest", "%.140q is no %s", e.Digest, e.Algorithm)
	}
	e.Digest = strings.ToLower(e.Digest)
	for strings.HasPrefix(e.Name, "./") {
		e.Name = e.Name[2:]
	}
	if len(e.Name) > maxName {
		return Entry{}, formats.Limit(format, off, "name", "%d bytes, at most %d", len(e.Name), maxName)
	}
	if !goodName(e.Name) {
		return Entry{}, formats.Corrupt(format, off, "name", "%.100q", e.Name)
	}
	e.Off = off
	return e, nil
}

func goodName(s string) bool {
	if s == "" || !utf8.ValidString(s) {
		return false
	}
	for _, c := range []byte(s) {
		if c < 0x20 || c == 0x7f {
			return false
		}
	}
	return true
}

// splitLine divides a line by its form. The label is the algorithm as BSD and
// OVF lines spell it.
func splitLine(line string) (e Entry, label string, ok bool) {
	e.Size = -1
	// GNU: digits first. A leading backslash announces escapes in the name.
	s, escaped := strings.CutPrefix(line, `\`)
	if n := hexRun(s); byLength(n) != "" && len(s) > n+2 && s[n] == ' ' && (s[n+1] == ' ' || s[n+1] == '*') {
		e.Form, e.Digest, e.Name = GNU, s[:n], s[n+2:]
		if s[n+1] == '*' {
			e.Form = GNUBinary
		}
		if escaped {
			e.Name, ok = unescape(e.Name)
			return e, "", ok
		}
		return e, "", true
	}
	if escaped {
		return e, "", false
	}
	// BSD and OVF: the name ends at the last parenthesis.
	if open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')'); open > 0 && end > open {
		label, spaced := strings.CutSuffix(line[:open], " ")
		rest := strings.TrimPrefix(line[end+1:], " ")
		rest, ok := strings.CutPrefix(rest, "=")
		if ok && plainLabel(label) {
			e.Form, e.Name, e.Digest = OVF, line[open+1:end], strings.Trim(rest, " ")
			if spaced {
				e.Form = BSD
			}
			return e, label, true
		}
	}
	// XVM 2: the name may have spaces, size and digest have none.
	i := strings.LastIndexByte(line, ' ')
	if i <= 0 || byLength(hexRun(line[i+1:])) == "" || hexRun(line[i+1:]) != len(line)-i-1 {
		return e, "", false
	}
	j := strings.LastIndexByte(line[:i], ' ')
	if j <= 0 {
		return e, "", false
	}
	size, err := strconv.ParseInt(line[j+1:i], 10, 64)
	if err != nil || size < 0 || line[j+1] < '0' || line[j+1] > '9' {
		return e, "", false
	}
	e.Form, e.Name, e.Size, e.Digest = XVM2, line[:j], size, line[i+1:]
	return e, "", true
}

// hexRun is the number of hexadecimal digits s begins with.
func hexRun(s string) int {
	for i, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return i
		}
	}
	return len(s)
}

func plainLabel(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 16
}

// unescape undoes what sha1sum(1) does to names with backslashes and line
// ends.
func unescape(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i++; i == len(s) {
			return "", false
		}
		switch s[i] {
		case '\\':
			b.WriteByte('\\')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		default:
			return "", false
		}
	}
	return b.String(), true
}

// Append appends the line of e to dst. It is an error if Parse would not
// read the line back.
func Append(dst []byte, e Entry) ([]byte, error) {
	var line string
	switch e.Form {
	case GNU, GNUBinary:
		name, mark := e.Name, ""
		if strings.Contains(name, `\`) {
			name, mark = strings.ReplaceAll(name, `\`, `\\`), `\`
		}
		sep := "  "
		if e.Form == GNUBinary {
			sep = " *"
		}
		line = mark + e.Digest + sep + name
	case BSD:
		line = strings.ToUpper(string(e.Algorithm)) + " (" + e.Name + ") = " + e.Digest
	case OVF:
		line = strings.ToUpper(string(e.Algorithm)) + "(" + e.Name + ")= " + e.Digest
	case XVM2:
		line = e.Name + " " + strconv.FormatInt(e.Size, 10) + " " + e.Digest
	default:
		return nil, fmt.Errorf("manifest: form %q", e.Form)
	}
	if e.Form != XVM2 {
		e.Size = -1
	}
	e.Off = 0
	if got, err := parseLine(line, Name, 0); err != nil {
		return nil, err
	} else if got != e || strings.ContainsAny(line, "\n\r") {
		return nil, fmt.Errorf("manifest: %.200q cannot be written in the form %s", e.Name, e.Form)
	}
	dst = append(dst, line...)
	return append(dst, '\n'), nil
}

// Render is a list of entries in one piece.
func Render(entries []Entry) ([]byte, error) {
	var b []byte
	var err error
	for _, e := range entries {
		if b, err = Append(b, e); err != nil {
			return nil, err
		}
	}
	if len(b) > MaxSize || len(entries) > MaxEntries {
		return nil, formats.Limit(Name, -1, "manifest", "%d lines, %d bytes", len(entries), len(b))
	}
	return b, nil
}
