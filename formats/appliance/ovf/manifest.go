package ovf

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // read, and called weak; written on request for importers that know nothing else
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
)

// algorithms are the digests of manifests and signatures, by their name in
// them. SHA1 is of DSP0243 1.x, SHA256 of 2.x; importers know SHA512 too.
var algorithms = map[string]crypto.Hash{
	"SHA1": crypto.SHA1, "SHA256": crypto.SHA256, "SHA384": crypto.SHA384, "SHA512": crypto.SHA512,
}

// DefaultAlgorithm is what manifests are written with.
const DefaultAlgorithm = "SHA256"

// weakDigest reports whether an algorithm proves nothing any more.
func weakDigest(alg string) bool { return alg == "SHA1" }

// A Manifest is a parsed .mf: digests of the files of a package (DSP0243
// section 5.1).
type Manifest struct {
	Algorithm string          `json:"algorithm"` // of all entries, "" when they differ
	Entries   []ManifestEntry `json:"entries"`   // in the order of the file
	Notes     []string        `json:"notes,omitempty"`
}

// A ManifestEntry is one line of a manifest.
type ManifestEntry struct {
	Algorithm string `json:"algorithm"` // SHA1, SHA256, SHA384 or SHA512
	File      string `json:"file"`
	Digest    string `json:"digest"` // hex, lower case
}

// Entry returns the entry of a file, or nil.
func (m *Manifest) Entry(file string) *ManifestEntry {
	for i := range m.Entries {
		if m.Entries[i].File == file {
			return &m.Entries[i]
		}
	}
	return nil
}

// digestLine is a line as "SHA256(file)= hex", of a manifest or a .cert.
type digestLine struct {
	alg, file string
	value     []byte
	upper     bool // hex digits in upper case
	lower     bool
	odd       bool // spelled as importers refuse it
}

// parseDigestLine takes the form of the standard, with one space or none
// after "="; and two spellings of other tools: in lower case, and with spaces
// as openssl writes "SHA256 (file) = hex". Everything else is refused: what
// is spelled in many ways can be changed without notice.
func parseDigestLine(line []byte) (l digestLine, err error) {
	s := string(line)
	bad := func() (digestLine, error) { return l, fmt.Errorf("line %q", clip(s)) }
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return bad()
	}
	l.alg = s[:open]
	if t, ok := strings.CutSuffix(l.alg, " "); ok {
		l.alg, l.odd = t, true
	}
	if up := strings.ToUpper(l.alg); l.alg == strings.ToLower(l.alg) {
		l.alg, l.odd = up, true
	}
	_, ok := algorithms[l.alg]
	if !ok {
		for _, c := range []byte(l.alg) {
			if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '/' {
				return bad()
			}
		}
		return l, formats.Unsupported(Name, -1, "digest", "algorithm %q", clip(l.alg))
	}
	l.file = s[open+1 : end]
	value, ok := strings.CutPrefix(s[end+1:], "=")
	if !ok {
		if value, ok = strings.CutPrefix(s[end+1:], " ="); !ok {
			return bad()
		}
		l.odd = true
	}
	value = strings.TrimPrefix(value, " ")
	for _, c := range []byte(value) {
		l.upper = l.upper || c >= 'A' && c <= 'F'
		l.lower = l.lower || c >= 'a' && c <= 'f'
	}
	if l.file == "" || !utf8.ValidString(l.file) || l.upper && l.lower {
		return bad()
	}
	if l.value, err = hex.DecodeString(value); err != nil || len(l.value) == 0 {
		return bad()
	}
	return l, nil
}

// splitLines splits text at line ends, which are all "\n" or all "\r\n".
func splitLines(b []byte) ([][]byte, error) {
	crlf := bytes.Count(b, []byte("\r\n"))
	if cr := bytes.Count(b, []byte("\r")); cr != crlf || crlf > 0 && crlf != bytes.Count(b, []byte("\n")) {
		return nil, fmt.Errorf("mixed line ends")
	}
	b = bytes.TrimSuffix(b, []byte("\n"))
	if crlf > 0 {
		return bytes.Split(bytes.TrimSuffix(b, []byte("\r")), []byte("\r\n")), nil
	}
	return bytes.Split(b, []byte("\n")), nil
}

// ParseManifest parses a .mf.
func ParseManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, formats.Limit(Name, -1, "manifest", "%d bytes, at most %d", len(b), maxManifest)
	}
	lines, err := splitLines(b)
	if err != nil {
		return nil, formats.Corrupt(Name, -1, "manifest", "%v", err)
	}
	if len(lines) > maxChunks+maxFiles {
		return nil, formats.Limit(Name, -1, "manifest", "%d lines", len(lines))
	}
	m := &Manifest{}
	seen := map[string]bool{}
	var upper, lower bool
	for i, line := range lines {
		if len(line) == 0 {
			continue
		}
		l, err := parseDigestLine(line)
		switch {
		case err != nil:
			return nil, lineError("manifest", i, err)
		case len(l.value) != algorithms[l.alg].Size():
			return nil, formats.Corrupt(Name, -1, "manifest", "line %d: digest of %d bytes", i+1, len(l.value))
		case seen[l.file]:
			return nil, formats.Corrupt(Name, -1, "manifest", "line %d: second entry of %q", i+1, clip(l.file))
		}
		upper, lower = upper || l.upper, lower || l.lower
		if upper && lower {
			return nil, formats.Corrupt(Name, -1, "manifest", "line %d: mixed case", i+1)
		}
		seen[l.file] = true
		if l.odd && len(m.Notes) == 0 {
			m.Notes = append(m.Notes, fmt.Sprintf("line %d: spelled as importers refuse it: %q", i+1, clip(string(line))))
		}
		m.Entries = append(m.Entries, ManifestEntry{l.alg, l.file, hex.EncodeToString(l.value)})
	}
	if len(m.Entries) == 0 {
		return nil, formats.Corrupt(Name, -1, "manifest", "empty")
	}
	m.Algorithm = m.Entries[0].Algorithm
	for _, e := range m.Entries {
		if e.Algorithm != m.Algorithm {
			m.Algorithm = ""
			m.Notes = append(m.Notes, "digests of more than one algorithm")
			break
		}
	}
	return m, nil
}

// lineError locates an error in line i of a file; one without a class is
// corruption.
func lineError(field string, i int, err error) error {
	if fe, ok := err.(*formats.Error); ok {
		return &formats.Error{Format: Name, Off: -1, Field: fmt.Sprintf("%s line %d", field, i+1), Err: fe.Err}
	}
	return formats.Corrupt(Name, -1, fmt.Sprintf("%s line %d", field, i+1), "%v", err)
}

// Marshal writes the manifest as the standard has it: "SHA256(file)= hex".
func (m *Manifest) Marshal() ([]byte, error) {
	var b bytes.Buffer
	for _, e := range m.Entries {
		h, ok := algorithms[e.Algorithm]
		switch {
		case !ok:
			return nil, formats.Unsupported(Name, -1, "manifest", "algorithm %q", e.Algorithm)
		case len(e.Digest) != 2*h.Size() || strings.ToLower(e.Digest) != e.Digest:
			return nil, fmt.Errorf("%s: digest %q of %q", Name, clip(e.Digest), clip(e.File))
		case e.File == "" || strings.ContainsAny(e.File, "\r\n"):
			return nil, fmt.Errorf("%s: file %q cannot be listed", Name, clip(e.File))
		}
		fmt.Fprintf(&b, "%s(%s)= %s\n", e.Algorithm, e.File, e.Digest)
	}
	return b.Bytes(), nil
}
