package xvm

import (
	"bytes"

	"imgmaint/formats"
	"imgmaint/formats/internal/manifest"
)

// A list is a list of checksums of the package.
type list struct {
	name    string
	entries []manifest.Entry
	err     error // why it cannot be read
	sig     int   // of it in Package.sigs, or -1
}

// A SignatureForm is how a signature is written.
type SignatureForm string

const (
	Detached     SignatureForm = "detached"     // armored, apart from what it signs
	ClearSigned  SignatureForm = "clear-signed" // together with the text it signs
	Unrecognised SignatureForm = "unrecognised"
)

// A Signature is one of a package, as data: nothing of it is checked here.
type Signature struct {
	Member string        `json:"member"` // that holds it
	Over   string        `json:"over"`   // member it is to sign
	Form   SignatureForm `json:"form"`
	Data   []byte        `json:"-"` // of Member
	// Message is what Data must sign: the bytes of Over. Nil when there is no
	// such member. A clear-signed text is compared with it: see Covers.
	Message []byte `json:"-"`
	// Text is the text inside a clear-signed file, as a reader that knows the
	// frame only takes it out; what a signature really covers is for the
	// checker to say.
	Text []byte `json:"-"`
	// Bare: the armor has no header lines and nothing around it, so that every
	// byte of Data matters.
	Bare bool `json:"bare"`
}

// Covers reports whether text, from a clear-signed file, is the message:
// equal but for spaces, tabs and carriage returns at line ends and empty
// lines at the end, which a clear signature does not cover.
func (s *Signature) Covers(text []byte) bool {
	return s.Message != nil && bytes.Equal(canonical(text), canonical(s.Message))
}

func canonical(b []byte) []byte {
	lines := bytes.Split(b, []byte{'\n'})
	for i := range lines {
		lines[i] = bytes.TrimRight(lines[i], " \t\r")
	}
	return bytes.TrimRight(bytes.Join(lines, []byte{'\n'}), "\n")
}

// Signatures are those of the package, in the order of what they sign: the
// manifest, the descriptor, the SHA-256 manifest.
func (p *Package) Signatures() []Signature { return p.sigs }

const (
	clearBegin = "-----BEGIN PGP SIGNED MESSAGE-----"
	sigBegin   = "-----BEGIN PGP SIGNATURE-----"
	sigEnd     = "-----END PGP SIGNATURE-----"
)

// clearText takes the text out of a clear-signed file (RFC 9580, section 7):
// behind the first empty line, up to the signature, dashes unescaped.
func clearText(b []byte) ([]byte, bool) {
	if !bytes.HasPrefix(b, []byte(clearBegin)) {
		return nil, false
	}
	rest := b
	for {
		line, more, ok := bytes.Cut(rest, []byte{'\n'})
		if !ok {
			return nil, false
		}
		rest = more
		if len(bytes.TrimRight(line, " \t\r")) == 0 {
			break
		}
	}
	var text []byte
	for len(rest) > 0 {
		line, more, _ := bytes.Cut(rest, []byte{'\n'})
		if string(bytes.TrimRight(line, " \t\r")) == sigBegin {
			return text, true
		}
		rest = more
		text = append(append(text, bytes.TrimPrefix(line, []byte("- "))...), '\n')
	}
	return nil, false
}

// bareArmor reports whether b is one armored signature without header lines,
// with nothing before it and only line feeds after.
func bareArmor(b []byte) bool {
	b, ok := bytes.CutPrefix(b, []byte(sigBegin+"\n\n"))
	i := bytes.Index(b, []byte("\n"+sigEnd))
	if !ok || i < 0 || len(bytes.Trim(b[i+1+len(sigEnd):], "\n")) > 0 {
		return false
	}
	for _, c := range b[:i] {
		if c != '\n' && c != '+' && c != '/' && c != '=' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return !bytes.Contains(b[:i], []byte("\n\n"))
}

// signature recognises the one in b.
func signature(member, over string, b, message []byte) Signature {
	s := Signature{Member: member, Over: over, Form: Unrecognised, Data: b, Message: message}
	if text, ok := clearText(b); ok {
		s.Form, s.Text = ClearSigned, text
		return s
	}
	if bytes.Contains(b, []byte(sigBegin)) {
		s.Form, s.Bare = Detached, bareArmor(b)
	}
	return s
}

// readLists reads the lists of checksums and the signatures. A list that
// cannot be read is remembered, and a reason not to verify.
func (p *Package) readLists() error {
	for _, l := range []struct{ name, sig string }{
		{ManifestName, ManifestSigName}, {p.descriptorName(), SignatureName}, {Manifest256Name, Signature256}} {
		isList := l.name != p.descriptorName()
		message := p.descriptor
		if isList {
			var err error
			if message, err = p.readMember(l.name, manifest.MaxSize); err != nil {
				return err
			}
		}
		_, there := p.archive.Member(l.name)
		sigAt := -1
		text, clear := clearText(message)
		if clear && isList {
			// The list is its own signature; one apart, if any, is over the
			// file as it is.
			s := signature(l.name, l.name, message, message)
			s.Message = text
			sigAt = len(p.sigs)
			p.sigs = append(p.sigs, s)
		}
		b, err := p.readMember(l.sig, manifest.MaxSize)
		if err != nil {
			return err
		}
		if _, ok := p.archive.Member(l.sig); ok {
			if !there {
				message = nil
			}
			s := signature(l.sig, l.name, b, message)
			if s.Form != ClearSigned && len(b) > maxSignature {
				return formats.Limit(p.format, -1, l.sig, "%d bytes, at most %d", len(b), maxSignature)
			}
			if sigAt < 0 {
				sigAt = len(p.sigs)
			}
			p.sigs = append(p.sigs, s)
		}
		if !isList || !there {
			continue
		}
		e := &list{name: l.name, sig: sigAt}
		if clear {
			message = text
		}
		e.entries, e.err = manifest.Parse(message, &manifest.Options{Format: p.format + ": " + l.name})
		p.lists = append(p.lists, e)
	}
	return nil
}

func (p *Package) descriptorName() string {
	if p.format == Name2 {
		return Descriptor2Name
	}
	return DescriptorName
}
