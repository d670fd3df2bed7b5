package xvm

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"imgmaint/formats"
)

// A node is an element of a parsed descriptor.
type node struct {
	name  xml.Name
	attrs []xml.Attr
	text  string // all of its own, without that of its elements
	nodes []*node
	off   int64 // behind its start tag
}

// attr is the value of an attribute without namespace.
func (n *node) attr(local string) string {
	for _, a := range n.attrs {
		if a.Name.Space == "" && a.Name.Local == local {
			return a.Value
		}
	}
	return ""
}

// child is the first element of a local name, or an empty one.
func (n *node) child(local string) *node {
	for _, c := range n.nodes {
		if c.name.Local == local {
			return c
		}
	}
	return &node{}
}

// walk calls fn for n and all below it, in the order of the text.
func (n *node) walk(depth int, fn func(n *node, depth int)) {
	fn(n, depth)
	for _, c := range n.nodes {
		c.walk(depth+1, fn)
	}
}

// parseTree reads an XML text. A document type, and with it every entity that
// is not XML's own, is refused; external things cannot be named.
func parseTree(format string, b []byte) (*node, error) {
	if len(b) > MaxDescriptor {
		return nil, formats.Limit(format, -1, "descriptor", "%d bytes, at most %d", len(b), MaxDescriptor)
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return nil, formats.Corrupt(format, int64(i), "xml", "NUL")
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	d.CharsetReader = charsetReader
	var root *node
	var stack []*node
	var text []*strings.Builder
	count := 0
	for {
		tok, err := d.Token()
		off := d.InputOffset()
		if err == io.EOF {
			break
		}
		if err != nil {
			var syntax *xml.SyntaxError
			if errors.As(err, &syntax) {
				return nil, formats.Corrupt(format, off, "xml", "line %d: %.200s", syntax.Line, syntax.Msg)
			}
			return nil, formats.Corrupt(format, off, "xml", "%.200v", err)
		}
		switch t := tok.(type) {
		case xml.Directive:
			return nil, formats.Unsupported(format, off, "xml", "document type declaration")
		case xml.StartElement:
			switch count++; {
			case count > maxElements:
				return nil, formats.Limit(format, off, "xml", "more than %d elements", maxElements)
			case len(stack) == maxDepth:
				return nil, formats.Limit(format, off, "xml", "more than %d levels", maxDepth)
			case len(t.Attr) > maxAttrs:
				return nil, formats.Limit(format, off, "xml", "%d attributes, at most %d", len(t.Attr), maxAttrs)
			case len(stack) == 0 && root != nil:
				return nil, formats.Corrupt(format, off, "xml", "two root elements")
			}
			for i, a := range t.Attr {
				for _, b := range t.Attr[:i] {
					if a.Name == b.Name {
						return nil, formats.Corrupt(format, off, "xml", "attribute %.100q twice", a.Name.Local)
					}
				}
			}
			n := &node{name: t.Name, attrs: t.Copy().Attr, off: off}
			if root == nil {
				root = n
			} else {
				p := stack[len(stack)-1]
				p.nodes = append(p.nodes, n)
			}
			stack, text = append(stack, n), append(text, &strings.Builder{})
		case xml.EndElement:
			last := len(stack) - 1
			stack[last].text = text[last].String()
			stack, text = stack[:last], text[:last]
		case xml.CharData:
			if len(stack) > 0 {
				text[len(text)-1].Write(t)
			} else if len(bytes.TrimSpace(bytes.TrimPrefix(t, []byte("\ufeff")))) > 0 {
				return nil, formats.Corrupt(format, off, "xml", "text outside of the root element")
			}
		}
	}
	if root == nil {
		return nil, formats.Corrupt(format, -1, "xml", "no root element")
	}
	return root, nil
}

// charsetReader is for descriptors older than everybody's UTF-8.
func charsetReader(label string, r io.Reader) (io.Reader, error) {
	switch strings.ToLower(label) {
	case "us-ascii", "ascii", "utf8":
		return r, nil
	case "iso-8859-1", "latin1", "latin-1":
		return &latin1{r: r}, nil
	}
	return nil, fmt.Errorf("encoding %.40q", label)
}

// latin1 turns ISO 8859-1 into UTF-8.
type latin1 struct {
	r    io.Reader
	rest byte // second byte of a character, or 0
}

func (l *latin1) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if l.rest != 0 {
			p[n], l.rest = l.rest, 0
			n++
			continue
		}
		var b [1]byte
		if _, err := io.ReadFull(l.r, b[:]); err != nil {
			if n > 0 && err == io.EOF {
				return n, nil
			}
			return n, err
		}
		if b[0] < 0x80 {
			p[n] = b[0]
		} else {
			p[n], l.rest = 0xc0|b[0]>>6, 0x80|b[0]&0x3f
		}
		n++
	}
	return n, nil
}
