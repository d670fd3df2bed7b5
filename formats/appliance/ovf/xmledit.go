package ovf

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
)

// A patch replaces text[lo:hi] by s.
type patch struct {
	lo, hi int
	s      string
}

// apply returns text with the patches made. They do not overlap; those at one
// place go in their order.
func apply(text []byte, patches []patch) []byte {
	ps := slices.Clone(patches)
	slices.SortStableFunc(ps, func(a, b patch) int { return a.lo - b.lo })
	var out bytes.Buffer
	pos := 0
	for _, p := range ps {
		out.Write(text[pos:p.lo])
		out.WriteString(p.s)
		pos = p.hi
	}
	out.Write(text[pos:])
	return out.Bytes()
}

// checkText reports a string that XML cannot carry.
func checkText(field, s string) error {
	if len(s) > maxValue {
		return formats.Limit(Name, -1, field, "%d bytes, at most %d", len(s), maxValue)
	}
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return fmt.Errorf("%s: %s: not UTF-8", Name, field)
			}
		}
		if !isChar(r) {
			return fmt.Errorf("%s: %s: character %U is not for XML", Name, field, r)
		}
	}
	return nil
}

var (
	attrEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&#39;",
		"\n", "&#10;", "\r", "&#13;", "\t", "&#9;")
	attrEscapesDouble = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;",
		"\n", "&#10;", "\r", "&#13;", "\t", "&#9;")
	textEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#13;")
)

// escapeAttr escapes a value that goes between double quotes.
func escapeAttr(s string) string { return attrEscapesDouble.Replace(s) }

func escapeText(s string) string { return textEscapes.Replace(s) }

// nodeAt is the element that starts at off.
func (p *parser) nodeAt(off int64) node {
	i := sort.Search(len(p.d.elems), func(i int) bool { return int64(p.d.elems[i].start) >= off })
	return node{p, int32(i)}
}

func (n node) parent() (node, bool) {
	i := n.elem().parent
	return node{n.p, i}, i >= 0
}

// prefixOf finds a prefix bound to ns where n stands, not shadowed by a
// nearer declaration. With attr set the default namespace does not count.
func (n node) prefixOf(ns string, attr bool) (prefix string, ok bool) {
	seen := map[string]bool{}
	for cur, up := n, true; up; cur, up = cur.parent() {
		e := cur.elem()
		var best string
		found := false
		for k := e.attrLo; k < e.attrHi; k++ {
			a := &n.p.d.attrs[k]
			name := string(n.p.d.bytes(a.name))
			pre, isDecl := "", name == "xmlns"
			if rest, cut := strings.CutPrefix(name, "xmlns:"); cut {
				pre, isDecl = rest, true
			}
			if !isDecl || seen[pre] {
				continue
			}
			seen[pre] = true
			if n.p.d.decode(a.value) == ns && !(attr && pre == "") && (!found || pre == "ovf") {
				best, found = pre, true
			}
		}
		if found {
			return best, true
		}
	}
	return "", false
}

// freePrefix is want, or want with a number when that is bound where n
// stands.
func (n node) freePrefix(want string) string {
	bound := func(pre string) bool {
		for cur, up := n, true; up; cur, up = cur.parent() {
			e := cur.elem()
			for k := e.attrLo; k < e.attrHi; k++ {
				if string(n.p.d.bytes(n.p.d.attrs[k].name)) == "xmlns:"+pre {
					return true
				}
			}
		}
		return false
	}
	for i := 0; ; i++ {
		pre := want
		if i > 0 {
			pre = fmt.Sprintf("%s%d", want, i)
		}
		if !bound(pre) {
			return pre
		}
	}
}

// names makes the names of new elements and attributes at a place: in the
// prefixes the document uses there, with the declarations that are missing.
type names struct {
	elem  string // prefix of OVF elements, with colon; "" for none
	attr  string // prefix of OVF attributes, with colon
	decls string // declarations a new element needs, each with a space before
}

func (n node) names() names {
	var m names
	pre := n.p.d.prefix(n.elem().name, n.elem().local)
	switch {
	case n.name() != "": // an element of OVF: its children go by the same prefix
		if pre != "" {
			m.elem = pre + ":"
		}
	default:
		if pre, ok := n.prefixOf(n.p.ns, false); ok && pre != "" {
			m.elem = pre + ":"
		}
	}
	if pre, ok := n.prefixOf(n.p.ns, true); ok {
		m.attr = pre + ":"
	} else {
		pre := n.freePrefix("ovf")
		m.attr = pre + ":"
		m.decls = fmt.Sprintf(` xmlns:%s="%s"`, pre, escapeAttr(n.p.ns))
	}
	return m
}

// setAttr makes the patches that set an attribute of OVF. An existing one is
// replaced within its quotes, a new one goes at the end of the start tag.
func (n node) setAttr(local, value string) patch {
	if a := n.findAttr(local); a != nil {
		return n.p.setValue(a, value)
	}
	name := local // as the attributes are written where no prefix is bound
	if pre, ok := n.prefixOf(n.p.ns, true); ok {
		name = pre + ":" + local
	}
	at := n.tagInsert()
	return patch{at, at, fmt.Sprintf(` %s="%s"`, name, escapeAttr(value))}
}

// setValue replaces an attribute's value. The new one suits either quote.
func (p *parser) setValue(a *attr, value string) patch {
	s := escapeAttr(value)
	if p.d.text[a.value.lo-1] == '\'' {
		s = attrEscapes.Replace(value)
	}
	return patch{int(a.value.lo), int(a.value.hi), s}
}

// tagInsert is where a new attribute goes: after the last attribute, or the
// name.
func (n node) tagInsert() int {
	e := n.elem()
	if e.attrHi > e.attrLo {
		return int(n.p.d.attrs[e.attrHi-1].value.hi) + 1
	}
	return int(e.name.hi)
}

// dropAttr makes the patch that removes an attribute with the space before
// it.
func (n node) dropAttr(a *attr) patch {
	lo := int(a.name.lo)
	for lo > 0 && isSpace(n.p.d.text[lo-1]) {
		lo--
	}
	return patch{lo, int(a.value.hi) + 1, ""}
}

// setText replaces what is inside an element by text.
func (n node) setText(s string) patch {
	e := n.elem()
	if e.emptyTag { // <a b="c"/> becomes <a b="c">s</a>
		lo := int(e.tagEnd) - 2
		return patch{lo, int(e.end), ">" + escapeText(s) + "</" + n.qname() + ">"}
	}
	return patch{int(e.tagEnd), int(e.bodyEnd), escapeText(s)}
}

// drop removes an element, with the line it stands on when it is alone there.
func (n node) drop() patch {
	t := n.p.d.text
	lo, hi := int(n.elem().start), int(n.elem().end)
	i := lo
	for i > 0 && (t[i-1] == ' ' || t[i-1] == '\t') {
		i--
	}
	j := hi
	for j < len(t) && (t[j] == ' ' || t[j] == '\t') {
		j++
	}
	if i > 0 && t[i-1] == '\n' && j < len(t) && (t[j] == '\n' || t[j] == '\r') {
		if lo = i - 1; lo > 0 && t[lo-1] == '\r' {
			lo--
		}
		hi = j
	}
	return patch{lo, hi, ""}
}

// newline is the line end of the document.
func (d *document) newline() string {
	if i := bytes.IndexByte(d.text, '\n'); i > 0 && d.text[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// indent is the white space between the start of the line and n; ok is false
// when something else stands there.
func (n node) indent() (string, bool) {
	t := n.p.d.text
	i := int(n.elem().start)
	for i > 0 && (t[i-1] == ' ' || t[i-1] == '\t') {
		i--
	}
	return string(t[i:n.elem().start]), i == 0 || t[i-1] == '\n'
}

// step is what the document indents a level by.
func (n node) step() string {
	for c := range n.children() {
		out, ok1 := n.indent()
		in, ok2 := c.indent()
		if rest, ok := strings.CutPrefix(in, out); ok && ok1 && ok2 && rest != "" {
			return rest
		}
	}
	if up, ok := n.parent(); ok {
		return up.step()
	}
	return "  "
}

// insert makes the patch that puts lines (an element, one line each, indented
// by tabs) into parent: after the child prev, or before everything when prev
// is the zero node.
func insert(parent, prev node, lines []string) patch {
	p := parent.p
	nl, step := p.d.newline(), parent.step()
	base, onLine := parent.indent()
	inner := base + step
	for c := range parent.children() {
		if inner, onLine = c.indent(); onLine {
			break
		}
	}
	var b strings.Builder
	if !onLine { // the document is not laid out here: nor is what comes
		nl, base, inner, step = "", "", "", ""
	}
	for _, l := range lines {
		b.WriteString(nl)
		b.WriteString(inner)
		body := strings.TrimLeft(l, "\t")
		b.WriteString(strings.Repeat(step, len(l)-len(body)))
		b.WriteString(body)
	}
	e := parent.elem()
	switch {
	case e.emptyTag:
		return patch{int(e.tagEnd) - 2, int(e.end), ">" + b.String() + nl + base + "</" + parent.qname() + ">"}
	case !prev.isZero():
		at := int(prev.elem().end)
		return patch{at, at, b.String()}
	case e.child < 0 && len(bytes.TrimSpace(p.d.text[e.tagEnd:e.bodyEnd])) == 0:
		return patch{int(e.tagEnd), int(e.bodyEnd), b.String() + nl + base}
	}
	return patch{int(e.tagEnd), int(e.tagEnd), b.String()}
}

// lastChild is the last child that keep accepts, or the zero node.
func (n node) lastChild(keep func(node) bool) node {
	var last node
	for c := range n.children() {
		if keep(c) {
			last = c
		}
	}
	return last
}
