package ovf

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
)

// A document is a parsed XML text. It keeps the text and, for every element
// and attribute, where in the text it is: that is what lets an edit leave
// everything else alone. Values are decoded when they are asked for.
//
// The parser takes XML 1.0 (fifth edition) with Namespaces in UTF-8, without
// document type declarations and therefore without entities of its own.
type document struct {
	text  []byte
	elems []elem // in document order; elems[0] is the root
	attrs []attr
	ns    []string // interned namespace names; ns[0] is ""
}

// An elem is an element; offsets are into document.text.
type elem struct {
	start    int32 // of '<'
	name     span  // qualified name
	local    int32 // where the local part of name starts
	tagEnd   int32 // after the '>' of the start tag
	bodyEnd  int32 // of '</'; tagEnd in an empty-element tag
	end      int32 // after the element
	ns       int32 // in document.ns
	attrLo   int32 // attributes are attrs[attrLo:attrHi]
	attrHi   int32
	parent   int32 // in elems, -1 for the root
	child    int32 // first child element, or -1
	next     int32 // next sibling element, or -1
	emptyTag bool  // <name/>
}

type attr struct {
	name  span
	local int32
	value span // between the quotes
	ns    int32
}

type span struct{ lo, hi int32 }

func (d *document) bytes(s span) []byte { return d.text[s.lo:s.hi] }

// A binding is a namespace declaration in scope.
type binding struct {
	prefix string
	ns     int32
	depth  int
}

type xmlParser struct {
	*document
	pos   int
	stack []int32 // open elements
	last  []int32 // last child of each open element, or -1
	scope []binding
}

func xmlError(off int, msg string, args ...any) error {
	return formats.Corrupt(Name, int64(off), "xml", msg, args...)
}

// parseXML parses text, which the document keeps.
func parseXML(text []byte) (*document, error) {
	if len(text) > MaxDescriptor {
		return nil, formats.Limit(Name, -1, "descriptor", "%d bytes, at most %d", len(text), MaxDescriptor)
	}
	p := &xmlParser{document: &document{text: text, ns: []string{"", nsXML}}}
	p.scope = []binding{{prefix: "xml", ns: 1}}
	if err := p.prolog(); err != nil {
		return nil, err
	}
	if err := checkChars(text); err != nil {
		return nil, err
	}
	for p.pos < len(text) {
		if err := p.markup(); err != nil {
			return nil, err
		}
	}
	if len(p.stack) > 0 {
		return nil, xmlError(len(text), "the text ends inside <%s>", p.qname(p.stack[len(p.stack)-1]))
	}
	if len(p.elems) == 0 {
		return nil, xmlError(len(text), "no element")
	}
	return p.document, nil
}

// prolog takes the byte order mark and the XML declaration.
func (p *xmlParser) prolog() error {
	t := p.text
	if bytes.HasPrefix(t, []byte{0xfe, 0xff}) || bytes.HasPrefix(t, []byte{0xff, 0xfe}) ||
		bytes.HasPrefix(t, []byte{0, '<'}) || bytes.HasPrefix(t, []byte{'<', 0}) {
		return formats.Unsupported(Name, 0, "encoding", "UTF-16")
	}
	if bytes.HasPrefix(t, []byte("\xef\xbb\xbf")) {
		p.pos = 3
	}
	rest := t[p.pos:]
	if !bytes.HasPrefix(rest, []byte("<?xml")) || len(rest) < 6 || !isSpace(rest[5]) {
		return nil
	}
	end := bytes.Index(rest, []byte("?>"))
	if end < 0 || end > 256 {
		return xmlError(p.pos, "XML declaration without end")
	}
	for _, f := range splitPseudo(string(rest[5:end])) {
		switch f[0] {
		case "version":
			if !strings.HasPrefix(f[1], "1.") {
				return formats.Unsupported(Name, int64(p.pos), "xml", "version %q", f[1])
			}
		case "standalone":
		case "encoding":
			switch enc := strings.ToLower(f[1]); enc {
			case "utf-8", "utf8":
			case "us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252":
				// The same bytes as UTF-8 as long as they are ASCII.
				for i, c := range t {
					if c >= 0x80 {
						return formats.Unsupported(Name, int64(i), "encoding", "%q", f[1])
					}
				}
			default:
				return formats.Unsupported(Name, int64(p.pos), "encoding", "%q", f[1])
			}
		default:
			return xmlError(p.pos, "XML declaration")
		}
	}
	p.pos += end + 2
	return nil
}

// splitPseudo splits the pseudo-attributes of an XML declaration. What is
// malformed comes back under an empty name.
func splitPseudo(s string) [][2]string {
	var out [][2]string
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return out
		}
		name, rest, ok := strings.Cut(s, "=")
		name, rest = strings.TrimRight(name, " \t\r\n"), strings.TrimLeft(rest, " \t\r\n")
		if !ok || rest == "" || rest[0] != '"' && rest[0] != '\'' {
			return append(out, [2]string{})
		}
		value, after, ok := strings.Cut(rest[1:], rest[:1])
		if !ok || len(out) > 3 {
			return append(out, [2]string{})
		}
		out, s = append(out, [2]string{name, value}), after
	}
}

// checkChars checks that the text is UTF-8 and holds only the characters that
// XML 1.0 section 2.2 allows.
func checkChars(t []byte) error {
	for i := 0; i < len(t); {
		c := t[i]
		if c < utf8.RuneSelf {
			if c < 0x20 && c != '\t' && c != '\n' && c != '\r' {
				return xmlError(i, "control character %#x", c)
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(t[i:])
		if r == utf8.RuneError && n == 1 {
			return xmlError(i, "not UTF-8")
		}
		if !isChar(r) {
			return xmlError(i, "character %U", r)
		}
		i += n
	}
	return nil
}

// isChar is the production Char.
func isChar(r rune) bool {
	return r >= 0x20 && r <= 0xd7ff || r == '\t' || r == '\n' || r == '\r' ||
		r >= 0xe000 && r <= 0xfffd || r >= 0x10000 && r <= 0x10ffff
}

// markup takes one run of character data or one piece of markup.
func (p *xmlParser) markup() error {
	t := p.text
	at := p.pos
	if t[at] != '<' {
		return p.charData()
	}
	rest := t[at:]
	switch {
	case bytes.HasPrefix(rest, []byte("</")):
		return p.endTag()
	case bytes.HasPrefix(rest, []byte("<!--")):
		end := bytes.Index(rest[4:], []byte("--"))
		if end < 0 || 4+end+2 >= len(rest) || rest[4+end+2] != '>' {
			return xmlError(at, "comment without end, or with -- inside")
		}
		p.pos += 4 + end + 3
		return nil
	case bytes.HasPrefix(rest, []byte("<![CDATA[")):
		if len(p.stack) == 0 {
			return xmlError(at, "text outside of the root element")
		}
		end := bytes.Index(rest, []byte("]]>"))
		if end < 0 {
			return xmlError(at, "CDATA section without end")
		}
		p.pos += end + 3
		return nil
	case bytes.HasPrefix(rest, []byte("<!")):
		return formats.Unsupported(Name, int64(at), "xml", "document type declaration")
	case bytes.HasPrefix(rest, []byte("<?")):
		n := p.nameLen(at + 2)
		if n == 0 || strings.EqualFold(string(t[at+2:at+2+n]), "xml") {
			return xmlError(at, "processing instruction")
		}
		end := bytes.Index(rest, []byte("?>"))
		if end < 0 || end > 2+n && !isSpace(rest[2+n]) {
			return xmlError(at, "processing instruction")
		}
		p.pos += end + 2
		return nil
	}
	return p.startTag()
}

func (p *xmlParser) charData() error {
	end := bytes.IndexByte(p.text[p.pos:], '<')
	if end < 0 {
		end = len(p.text) - p.pos
	}
	run := p.text[p.pos : p.pos+end]
	if len(p.stack) == 0 {
		if i := bytes.IndexFunc(run, func(r rune) bool { return !isSpace(byte(min(r, 0xff))) }); i >= 0 {
			return xmlError(p.pos+i, "text outside of the root element")
		}
	} else {
		if i := bytes.Index(run, []byte("]]>")); i >= 0 {
			return xmlError(p.pos+i, "]]> in text")
		}
		if err := p.references(p.pos, p.pos+end); err != nil {
			return err
		}
	}
	p.pos += end
	return nil
}

// references checks every '&' between lo and hi.
func (p *xmlParser) references(lo, hi int) error {
	for {
		i := bytes.IndexByte(p.text[lo:hi], '&')
		if i < 0 {
			return nil
		}
		lo += i
		_, n := decodeRef(p.text[lo:hi])
		if n == 0 {
			return xmlError(lo, "reference %q", p.text[lo:min(hi, lo+16)])
		}
		lo += n
	}
}

// decodeRef decodes the reference at the start of b: one of the five
// predefined entities or a character reference. n is 0 when it is neither.
func decodeRef(b []byte) (r rune, n int) {
	end := bytes.IndexByte(b[:min(len(b), 16)], ';')
	if end < 3 {
		return 0, 0
	}
	switch name := string(b[1:end]); name {
	case "lt":
		return '<', end + 1
	case "gt":
		return '>', end + 1
	case "amp":
		return '&', end + 1
	case "apos":
		return '\'', end + 1
	case "quot":
		return '"', end + 1
	default:
		if name[0] != '#' {
			return 0, 0
		}
		digits, base := name[1:], rune(10)
		if digits[0] == 'x' {
			digits, base = digits[1:], 16
		}
		if digits == "" {
			return 0, 0
		}
		for _, c := range []byte(digits) {
			var v rune
			switch {
			case c >= '0' && c <= '9':
				v = rune(c - '0')
			case base == 16 && c >= 'a' && c <= 'f':
				v = rune(c-'a') + 10
			case base == 16 && c >= 'A' && c <= 'F':
				v = rune(c-'A') + 10
			default:
				return 0, 0
			}
			if r = r*base + v; r > utf8.MaxRune {
				return 0, 0
			}
		}
		if !isChar(r) {
			return 0, 0
		}
		return r, end + 1
	}
}

func (p *xmlParser) endTag() error {
	at := p.pos
	if len(p.stack) == 0 {
		return xmlError(at, "end tag without start tag")
	}
	i := p.stack[len(p.stack)-1]
	n := p.nameLen(at + 2)
	if string(p.text[at+2:at+2+n]) != p.qname(i) {
		return xmlError(at, "end tag %q inside <%s>", p.text[at+2:at+2+n], p.qname(i))
	}
	p.pos = p.skipSpace(at + 2 + n)
	if p.pos >= len(p.text) || p.text[p.pos] != '>' {
		return xmlError(at, "end tag without end")
	}
	p.pos++
	p.close(i, at)
	return nil
}

// close ends the innermost element i, whose content ends at bodyEnd.
func (p *xmlParser) close(i int32, bodyEnd int) {
	p.elems[i].bodyEnd, p.elems[i].end = int32(bodyEnd), int32(p.pos)
	depth := len(p.stack)
	for len(p.scope) > 0 && p.scope[len(p.scope)-1].depth == depth {
		p.scope = p.scope[:len(p.scope)-1]
	}
	p.stack, p.last = p.stack[:depth-1], p.last[:depth-1]
}

func (p *xmlParser) startTag() error {
	at := p.pos
	if len(p.elems) > 0 && len(p.stack) == 0 {
		return xmlError(at, "second root element")
	}
	if len(p.elems) >= maxElements {
		return formats.Limit(Name, int64(at), "xml", "more than %d elements", maxElements)
	}
	if len(p.stack) >= maxDepth {
		return formats.Limit(Name, int64(at), "xml", "elements nested more than %d deep", maxDepth)
	}
	n, local, ok := p.qnameAt(at + 1)
	if !ok {
		return xmlError(at, "element name")
	}
	i := int32(len(p.elems))
	e := elem{start: int32(at), name: span{int32(at + 1), int32(at + 1 + n)}, local: int32(local),
		attrLo: int32(len(p.attrs)), parent: -1, child: -1, next: -1}
	p.pos = at + 1 + n
	if err := p.attributes(&e); err != nil {
		return err
	}
	if d := len(p.stack); d > 0 {
		e.parent = p.stack[d-1]
		if prev := p.last[d-1]; prev >= 0 {
			p.elems[prev].next = i
		} else {
			p.elems[e.parent].child = i
		}
		p.last[d-1] = i
	}
	p.stack, p.last = append(p.stack, i), append(p.last, -1)
	if err := p.resolve(&e); err != nil {
		return err
	}
	e.tagEnd = int32(p.pos)
	p.elems = append(p.elems, e)
	if e.emptyTag {
		p.close(i, p.pos)
	}
	return nil
}

// attributes takes what follows the element name up to and including '>'.
func (p *xmlParser) attributes(e *elem) error {
	t := p.text
	for {
		before := p.pos
		p.pos = p.skipSpace(p.pos)
		if p.pos >= len(t) {
			return xmlError(int(e.start), "start tag without end")
		}
		switch {
		case t[p.pos] == '>':
			p.pos++
			e.attrHi = int32(len(p.attrs))
			return nil
		case t[p.pos] == '/' && p.pos+1 < len(t) && t[p.pos+1] == '>':
			p.pos += 2
			e.emptyTag = true
			e.attrHi = int32(len(p.attrs))
			return nil
		case before == p.pos:
			return xmlError(p.pos, "space needed before %q", t[p.pos])
		}
		n, local, ok := p.qnameAt(p.pos)
		if !ok {
			return xmlError(p.pos, "attribute name")
		}
		if len(p.attrs) >= maxAttributes || len(p.attrs)-int(e.attrLo) >= maxAttrsOf {
			return formats.Limit(Name, int64(p.pos), "xml", "more than %d attributes, or %d in one element", maxAttributes, maxAttrsOf)
		}
		a := attr{name: span{int32(p.pos), int32(p.pos + n)}, local: int32(local)}
		p.pos = p.skipSpace(p.pos + n)
		if p.pos >= len(t) || t[p.pos] != '=' {
			return xmlError(p.pos, "attribute %q without value", p.bytes(a.name))
		}
		p.pos = p.skipSpace(p.pos + 1)
		if p.pos >= len(t) || t[p.pos] != '"' && t[p.pos] != '\'' {
			return xmlError(p.pos, "attribute %q without quotes", p.bytes(a.name))
		}
		end := bytes.IndexByte(t[p.pos+1:], t[p.pos])
		if end < 0 {
			return xmlError(p.pos, "attribute %q without end", p.bytes(a.name))
		}
		a.value = span{int32(p.pos + 1), int32(p.pos + 1 + end)}
		if i := bytes.IndexByte(p.bytes(a.value), '<'); i >= 0 {
			return xmlError(p.pos+1+i, "< in the value of %q", p.bytes(a.name))
		}
		if err := p.references(int(a.value.lo), int(a.value.hi)); err != nil {
			return err
		}
		p.pos = int(a.value.hi) + 1
		p.attrs = append(p.attrs, a)
	}
}

// resolve binds the prefixes of e and its attributes to namespaces.
func (p *xmlParser) resolve(e *elem) error {
	as := p.attrs[e.attrLo:e.attrHi]
	depth := len(p.stack)
	for k := range as {
		a := &as[k]
		if !bytes.HasPrefix(p.bytes(a.name), []byte("xmlns")) {
			continue
		}
		name := string(p.bytes(a.name))
		prefix, isDecl := "", name == "xmlns"
		if rest, ok := strings.CutPrefix(name, "xmlns:"); ok {
			prefix, isDecl = rest, true
		}
		if !isDecl {
			continue
		}
		uri := p.decode(a.value)
		switch {
		case prefix == "xmlns", uri == nsXMLNS, (prefix == "xml") != (uri == nsXML):
			return xmlError(int(a.name.lo), "declaration of %q", name)
		case prefix != "" && uri == "":
			return xmlError(int(a.name.lo), "prefix %q bound to nothing", prefix)
		case len(p.scope) >= maxScope:
			return formats.Limit(Name, int64(a.name.lo), "xml", "more than %d namespaces in scope", maxScope)
		}
		p.scope = append(p.scope, binding{prefix, p.intern(uri), depth})
		a.ns = p.intern(nsXMLNS)
	}
	var ok bool
	if e.ns, ok = p.lookup(p.prefix(e.name, e.local)); !ok {
		return xmlError(int(e.start), "prefix of <%s> is not declared", p.bytes(e.name))
	}
	for k := range as {
		a := &as[k]
		if prefix := p.prefix(a.name, a.local); prefix != "" && prefix != "xmlns" {
			if a.ns, ok = p.lookup(prefix); !ok {
				return xmlError(int(a.name.lo), "prefix of attribute %q is not declared", p.bytes(a.name))
			}
		}
		la := p.text[a.local:a.name.hi]
		for j := range k {
			b := &as[j]
			if len(la) == int(b.name.hi-b.local) && p.ns[a.ns] == p.ns[b.ns] && bytes.Equal(la, p.text[b.local:b.name.hi]) {
				return xmlError(int(a.name.lo), "attribute %q twice", p.bytes(a.name))
			}
		}
	}
	return nil
}

// prefix is the prefix of a qualified name, "" when it has none.
func (d *document) prefix(name span, local int32) string {
	if local == name.lo {
		return ""
	}
	return string(d.text[name.lo : local-1])
}

// lookup finds the namespace of a prefix in scope. No default namespace is
// the namespace "".
func (p *xmlParser) lookup(prefix string) (int32, bool) {
	for i := len(p.scope) - 1; i >= 0; i-- {
		if p.scope[i].prefix == prefix {
			return p.scope[i].ns, true
		}
	}
	return 0, prefix == ""
}

// intern returns the index of uri in d.ns. The number of different names in a
// document is small; a hostile one is bounded by its attributes, and searched
// in the most recent ones only.
func (d *document) intern(uri string) int32 {
	for i := len(d.ns) - 1; i >= max(0, len(d.ns)-maxScope); i-- {
		if d.ns[i] == uri {
			return int32(i)
		}
	}
	for i := range min(len(d.ns), 16) {
		if d.ns[i] == uri {
			return int32(i)
		}
	}
	d.ns = append(d.ns, uri)
	return int32(len(d.ns) - 1)
}

// qnameAt measures the qualified name at off and finds its local part.
func (d *document) qnameAt(off int) (n, local int, ok bool) {
	n = d.nameLen(off)
	if n == 0 {
		return 0, 0, false
	}
	name := d.text[off : off+n]
	i := bytes.IndexByte(name, ':')
	if i < 0 {
		return n, off, true
	}
	r, _ := utf8.DecodeRune(name[min(i+1, n):])
	if i == 0 || i == n-1 || bytes.IndexByte(name[i+1:], ':') >= 0 || !isNameStart(r) {
		return 0, 0, false
	}
	return n, off + i + 1, true
}

// nameLen measures the Name at off, 0 when there is none.
func (d *document) nameLen(off int) int {
	i := off
	for i < len(d.text) {
		r, n := rune(d.text[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(d.text[i:])
		}
		if !isNameStart(r) && (i == off || !isNameChar(r)) {
			break
		}
		i += n
	}
	return i - off
}

// isNameStart is the production NameStartChar, isNameChar the rest of
// NameChar.
func isNameStart(r rune) bool {
	switch {
	case r < 0x80:
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_' || r == ':'
	case r == 0xd7 || r == 0xf7 || r < 0xc0, r > 0x2ff && r < 0x370, r == 0x37e:
		return false
	case r <= 0x1fff, r == 0x200c, r == 0x200d:
		return true
	}
	return r >= 0x2070 && r <= 0x218f || r >= 0x2c00 && r <= 0x2fef || r >= 0x3001 && r <= 0xd7ff ||
		r >= 0xf900 && r <= 0xfdcf || r >= 0xfdf0 && r <= 0xfffd || r >= 0x10000 && r <= 0xeffff
}

func isNameChar(r rune) bool {
	return r >= '0' && r <= '9' || r == '-' || r == '.' || r == 0xb7 ||
		r >= 0x300 && r <= 0x36f || r == 0x203f || r == 0x2040
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func (d *document) skipSpace(off int) int {
	for off < len(d.text) && isSpace(d.text[off]) {
		off++
	}
	return off
}

func (d *document) qname(i int32) string { return string(d.bytes(d.elems[i].name)) }

// decode returns the attribute value at s: references resolved, line ends and
// tabs as spaces (XML 1.0 section 3.3.3).
func (d *document) decode(s span) string {
	raw := d.bytes(s)
	if !bytes.ContainsAny(raw, "&\t\r\n") {
		return string(raw)
	}
	var b strings.Builder
	for i := 0; i < len(raw); {
		switch c := raw[i]; c {
		case '&':
			r, n := decodeRef(raw[i:])
			b.WriteRune(r)
			i += max(n, 1)
		case '\r':
			if i+1 < len(raw) && raw[i+1] == '\n' {
				i++
			}
			b.WriteByte(' ')
			i++
		case '\t', '\n':
			b.WriteByte(' ')
			i++
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.String()
}

// content returns the character data directly inside e, without that of its
// child elements; at most max bytes.
func (d *document) content(e *elem, limit int) (string, error) {
	var b strings.Builder
	pos, body := int(e.tagEnd), int(e.bodyEnd)
	child := e.child
	for pos < body {
		if child >= 0 && pos == int(d.elems[child].start) {
			pos, child = int(d.elems[child].end), d.elems[child].next
			continue
		}
		rest := d.text[pos:body]
		n := 0
		switch {
		case rest[0] != '<':
			if n = bytes.IndexByte(rest, '<'); n < 0 {
				n = len(rest)
			}
			if b.Len()+n > limit {
				return "", formats.Limit(Name, int64(e.start), string(d.bytes(e.name)), "text of more than %d bytes", limit)
			}
			decodeText(&b, rest[:n], true)
		case bytes.HasPrefix(rest, []byte("<![CDATA[")):
			end := bytes.Index(rest, []byte("]]>"))
			if b.Len()+end > limit {
				return "", formats.Limit(Name, int64(e.start), string(d.bytes(e.name)), "text of more than %d bytes", limit)
			}
			decodeText(&b, rest[9:end], false)
			n = end + 3
		case bytes.HasPrefix(rest, []byte("<!--")):
			n = 4 + bytes.Index(rest[4:], []byte("-->")) + 3
		default:
			n = bytes.Index(rest, []byte("?>")) + 2
		}
		pos += n
	}
	return b.String(), nil
}

// decodeText appends character data with line ends as "\n" (XML 1.0 section
// 2.11) and, unless it is of a CDATA section, references resolved.
func decodeText(b *strings.Builder, raw []byte, refs bool) {
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '&' && refs:
			r, n := decodeRef(raw[i:])
			b.WriteRune(r)
			i += max(n, 1)
		case c == '\r':
			if i+1 < len(raw) && raw[i+1] == '\n' {
				i++
			}
			b.WriteByte('\n')
			i++
		default:
			b.WriteByte(c)
			i++
		}
	}
}
