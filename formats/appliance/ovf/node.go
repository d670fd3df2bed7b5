package ovf

import (
	"iter"
	"strconv"
	"strings"

	"imgmaint/formats"
)

// A node is an element in the terms of OVF: names are compared with the
// envelope's namespace, and the dialects of old exporters are levelled.
type node struct {
	p *parser
	i int32
}

func (n node) elem() *elem   { return &n.p.d.elems[n.i] }
func (n node) off() int64    { return int64(n.elem().start) }
func (n node) ns() string    { return n.p.d.ns[n.elem().ns] }
func (n node) qname() string { return n.p.d.qname(n.i) }
func (n node) local() string { e := n.elem(); return string(n.p.d.text[e.local:e.name.hi]) }
func (n node) isZero() bool  { return n.p == nil }

// name is the local name of an element of OVF, "" of any other. Exporters
// that follow drafts of the standard write <Section xsi:type="ovf:X_Type">
// for <X>, and leave elements in no namespace.
func (n node) name() string {
	if !n.p.ours(n.ns()) {
		return ""
	}
	local := n.local()
	if local == "Section" || local == "Content" {
		if t, ok := n.attrNS(nsXSI, "type"); ok {
			_, t = cutLast(t, ":")
			return strings.TrimSuffix(t, "_Type")
		}
	}
	return local
}

// cutLast cuts s around the last sep; all of s is after when there is none.
func cutLast(s, sep string) (before, after string) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):]
	}
	return "", s
}

// children ranges over the child elements.
func (n node) children() iter.Seq[node] {
	return func(yield func(node) bool) {
		for i := n.elem().child; i >= 0; i = n.p.d.elems[i].next {
			if !yield(node{n.p, i}) {
				return
			}
		}
	}
}

// all ranges over the children of one OVF name.
func (n node) all(name string) iter.Seq[node] {
	return func(yield func(node) bool) {
		for c := range n.children() {
			if c.name() == name && !yield(c) {
				return
			}
		}
	}
}

// first is the first child of that OVF name, the zero node when there is
// none.
func (n node) first(name string) node {
	for c := range n.all(name) {
		return c
	}
	return node{}
}

// findAttr finds an attribute of OVF: in its namespace, as the schema has it,
// or in none, as careless exporters write it.
func (n node) findAttr(local string) *attr {
	var plain *attr
	e := n.elem()
	for k := e.attrLo; k < e.attrHi; k++ {
		a := &n.p.d.attrs[k]
		if string(n.p.d.text[a.local:a.name.hi]) != local {
			continue
		}
		switch ns := n.p.d.ns[a.ns]; {
		case ns == "":
			plain = a
		case n.p.ours(ns):
			return a
		}
	}
	return plain
}

func (n node) attr(local string) (string, bool) {
	a := n.findAttr(local)
	if a == nil {
		return "", false
	}
	return n.p.d.decode(a.value), true
}

// str is the value of an attribute, "" when it is absent.
func (n node) str(local string) string { s, _ := n.attr(local); return s }

// attrNS is an attribute of another namespace.
func (n node) attrNS(ns, local string) (string, bool) {
	if a := n.findAttrNS(ns, local); a != nil {
		return n.p.d.decode(a.value), true
	}
	return "", false
}

func (n node) findAttrNS(ns, local string) *attr {
	e := n.elem()
	for k := e.attrLo; k < e.attrHi; k++ {
		a := &n.p.d.attrs[k]
		if n.p.d.ns[a.ns] == ns && string(n.p.d.text[a.local:a.name.hi]) == local {
			return a
		}
	}
	return nil
}

// number is an attribute that holds a count or a size: digits only. ok is
// false when it is absent.
func (n node) number(local string) (v int64, ok bool, err error) {
	a := n.findAttr(local)
	if a == nil {
		return 0, false, nil
	}
	s := strings.TrimSpace(n.p.d.decode(a.value))
	v, err = parseNumber(s)
	if err != nil {
		return 0, true, formats.Corrupt(Name, int64(a.value.lo), n.qname()+"@"+local, "%q is not a number", clip(s))
	}
	return v, true, nil
}

func parseNumber(s string) (int64, error) {
	v, err := strconv.ParseUint(s, 10, 63)
	return int64(v), err
}

// flag is a boolean attribute: true, false, 1 or 0 (XML Schema).
func (n node) flag(local string, absent bool) (bool, error) {
	a := n.findAttr(local)
	if a == nil {
		return absent, nil
	}
	s := n.p.d.decode(a.value)
	switch strings.TrimSpace(s) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, formats.Corrupt(Name, int64(a.value.lo), n.qname()+"@"+local, "%q is not a boolean", clip(s))
}

// text is the character data of the element, trimmed.
func (n node) text() (string, error) {
	s, err := n.p.d.content(n.elem(), maxValue)
	if err != nil {
		return "", err
	}
	if n.p.texts += len(s); n.p.texts > maxText {
		return "", formats.Limit(Name, n.off(), n.qname(), "texts of more than %d bytes", maxText)
	}
	return strings.TrimSpace(s), nil
}

// message is a localisable text: the element's own with its ovf:msgid.
func (n node) message() (Text, error) {
	if n.isZero() {
		return Text{}, nil
	}
	s, err := n.text()
	return Text{Value: s, MsgID: n.str("msgid")}, err
}

// clip shortens what a stranger wrote for an error message.
func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "..."
	}
	return s
}
