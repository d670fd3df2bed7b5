package pgp

import (
	"bytes"
	"io"
	"strings"

	"imgmaint/formats"
)

const (
	clearBegin = "-----BEGIN PGP SIGNED MESSAGE-----"
	sigBegin   = "-----BEGIN PGP SIGNATURE-----"
)

// IsClearsigned tells whether a file begins, after white space, as a clear-signed
// message does.
func IsClearsigned(b []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(b[:min(len(b), 4096)], blanks+"\n"), []byte(clearBegin))
}

// A cleartext is a clear-signed message taken apart.
type cleartext struct {
	text      []byte // signed, with line feeds; see VerifyClearsigned
	hashes    []byte // of the Hash headers, nil when there are none
	signature []byte // packets
}

// parseCleartext reads the cleartext signature framework (RFC 9580 section 7).
// The only header is Hash; a line that begins with a dash has to be escaped.
func parseCleartext(b []byte) (*cleartext, error) {
	if len(b) > maxCleartext {
		return nil, formats.Limit(format, -1, "cleartext", "%d bytes, at most %d", len(b), maxCleartext)
	}
	corrupt := func(off int, msg string, args ...any) (*cleartext, error) {
		return nil, formats.Corrupt(format, int64(off), "cleartext", msg, args...)
	}
	l := &lines{b: b}
	next := func() (string, int, bool) { // without white space at the end
		line, off, ok := l.next()
		return string(bytes.TrimRight(line, blanks)), off, ok
	}
	for {
		line, off, ok := next()
		if !ok || line != "" && line != clearBegin {
			return nil, formats.Unknown(format, int64(off), "cleartext", "not clear-signed")
		}
		if line == clearBegin {
			break
		}
	}
	c := new(cleartext)
	for {
		line, off, ok := next()
		if !ok {
			return corrupt(off, "no end")
		}
		if line == "" {
			break
		}
		names, ok := strings.CutPrefix(line, "Hash: ")
		if !ok {
			return corrupt(off, "header is not Hash")
		}
		for name := range strings.SplitSeq(names, ",") {
			id := hashByName(strings.TrimSpace(name))
			if id == 0 {
				return corrupt(off, "unknown hash in the header")
			}
			if len(c.hashes) >= maxSignatures {
				return nil, formats.Limit(format, int64(off), "cleartext", "more than %d Hash headers", maxSignatures)
			}
			c.hashes = append(c.hashes, id)
		}
	}
	c.text = make([]byte, 0, len(b)-l.off)
	for {
		raw, off, ok := l.next()
		if !ok {
			return corrupt(off, "no end")
		}
		line := bytes.TrimRight(raw, blanks)
		if len(line) > 0 && line[0] == '-' {
			if string(line) == sigBegin {
				break
			}
			// "- " may have lost its space with the white space at the line end.
			if len(raw) < 2 || raw[1] != ' ' {
				return corrupt(off, "line begins with a dash and is not escaped")
			}
			line = line[min(2, len(line)):]
		}
		c.text = append(append(c.text, line...), '\n')
	}
	if len(c.text) == 1 {
		c.text = c.text[:0] // one empty line is signed as no line is
	}
	var err error
	if c.signature, err = dearmor(l, armorSignature); err != nil {
		return nil, err
	}
	for {
		line, off, ok := next()
		if !ok {
			return c, nil
		}
		if line != "" {
			return corrupt(off, "text after the signature")
		}
	}
}

// hashByName is the inverse of hashName, for the Hash header; 0 when unknown.
func hashByName(name string) byte {
	for _, id := range []byte{hashMD5, hashSHA1, hashRIPEMD160, hashSHA224, hashSHA256, hashSHA384, hashSHA512, hashSHA3_256, hashSHA3_512} {
		if hashName(id) == name {
			return id
		}
	}
	return 0
}

// writeCanonical writes text, as it stands in cleartext, in the form that is
// signed: CR LF between lines, none after the last.
func writeCanonical(w io.Writer, text []byte) {
	for len(text) > 0 {
		i := bytes.IndexByte(text, '\n')
		w.Write(text[:i])
		if text = text[i+1:]; len(text) > 0 {
			w.Write(crlf)
		}
	}
}

// canonicalText brings text to the form of cleartext.text.
func canonicalText(b []byte) []byte {
	out := make([]byte, 0, len(b)+1)
	l := &lines{b: b}
	for {
		line, _, ok := l.next()
		if !ok {
			break
		}
		out = append(append(out, bytes.TrimRight(line, blanks)...), '\n')
	}
	if len(out) == 1 {
		out = out[:0]
	}
	return out
}

// writeCleartext writes a clear-signed message around text as it was given. As
// GnuPG does, lines that begin with "From " are escaped along with those that
// begin with a dash.
func writeCleartext(hash byte, text, signature []byte) []byte {
	var w bytes.Buffer
	w.WriteString(clearBegin + "\nHash: " + hashName(hash) + "\n\n")
	l := &lines{b: text}
	for {
		line, _, ok := l.next()
		if !ok {
			break
		}
		if bytes.HasPrefix(line, []byte("-")) || bytes.HasPrefix(line, []byte("From ")) {
			w.WriteString("- ")
		}
		w.Write(line)
		w.WriteByte('\n')
	}
	if len(text) == 0 {
		w.WriteByte('\n')
	}
	w.Write(enarmor(armorSignature, signature))
	return w.Bytes()
}
