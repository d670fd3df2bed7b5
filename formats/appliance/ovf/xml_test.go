package ovf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

var xmlCases = []struct {
	name, text string
	class      error // nil: well-formed
}{
	{"empty", ``, formats.ErrCorrupt},
	{"one", `<a/>`, nil},
	{"mark", "\xef\xbb\xbf<a/>", nil},
	{"declaration", `<?xml version="1.0" encoding="UTF-8" standalone='yes' ?><a/>`, nil},
	{"version", `<?xml version="2.0"?><a/>`, errors.ErrUnsupported},
	{"latin", `<?xml version="1.0" encoding="ISO-8859-1"?><a b="x"/>`, nil},
	{"latin not ascii", "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a b=\"\xe9\"/>", errors.ErrUnsupported},
	{"shift-jis", `<?xml version="1.0" encoding="Shift_JIS"?><a/>`, errors.ErrUnsupported},
	{"utf-16", "\xff\xfe<\x00a\x00/\x00>\x00", errors.ErrUnsupported},
	{"utf-16 without mark", "<\x00a\x00/\x00>\x00", errors.ErrUnsupported},
	{"comment", `<!-- c --><a><!-- <b> --></a><!---->`, nil},
	{"comment with dashes", `<a><!-- a -- b --></a>`, formats.ErrCorrupt},
	{"comment open", `<a><!-- a -</a>`, formats.ErrCorrupt},
	{"cdata", `<a><![CDATA[<b>&x;]]></a>`, nil},
	{"cdata outside", `<![CDATA[x]]><a/>`, formats.ErrCorrupt},
	{"cdata open", `<a><![CDATA[x]]</a>`, formats.ErrCorrupt},
	{"pi", `<?p x?><a><?q?></a>`, nil},
	{"pi xml", `<a><?xml version="1.0"?></a>`, formats.ErrCorrupt},
	{"doctype", `<!DOCTYPE a><a/>`, errors.ErrUnsupported},
	{"billion laughs", `<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><l>&b;</l>`, errors.ErrUnsupported},
	{"external entity", `<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><l>&x;</l>`, errors.ErrUnsupported},
	{"entity", `<a>&nbsp;</a>`, formats.ErrCorrupt},
	{"entity in value", `<a b="&x;"/>`, formats.ErrCorrupt},
	{"predefined", `<a b="&lt;&gt;&amp;&quot;&apos;">&lt;&gt;&amp;&quot;&apos;</a>`, nil},
	{"references", `<a>&#65;&#x42;&#x1F600;</a>`, nil},
	{"reference to nul", `<a>&#0;</a>`, formats.ErrCorrupt},
	{"reference too large", `<a>&#x110000;</a>`, formats.ErrCorrupt},
	{"reference surrogate", `<a>&#xD800;</a>`, formats.ErrCorrupt},
	{"reference empty", `<a>&#;</a>`, formats.ErrCorrupt},
	{"ampersand", `<a>a & b</a>`, formats.ErrCorrupt},
	{"text outside", `<a/>x`, formats.ErrCorrupt},
	{"two roots", `<a/><b/>`, formats.ErrCorrupt},
	{"not closed", `<a><b></b>`, formats.ErrCorrupt},
	{"wrong end", `<a></b>`, formats.ErrCorrupt},
	{"end without start", `</a>`, formats.ErrCorrupt},
	{"wrong prefix of end", `<p:a xmlns:p="u" xmlns:q="u"></q:a>`, formats.ErrCorrupt},
	{"attribute twice", `<a b="1" b="2"/>`, formats.ErrCorrupt},
	{"attribute twice by namespace", `<a xmlns:p="u" xmlns:q="u" p:b="1" q:b="2"/>`, formats.ErrCorrupt},
	{"same local names", `<a xmlns:p="u" xmlns:q="v" p:b="1" q:b="2" b="3"/>`, nil},
	{"no space", `<a b="1"c="2"/>`, formats.ErrCorrupt},
	{"no quotes", `<a b=1/>`, formats.ErrCorrupt},
	{"less-than in value", `<a b="<"/>`, formats.ErrCorrupt},
	{"prefix not declared", `<p:a/>`, formats.ErrCorrupt},
	{"attribute prefix not declared", `<a p:b="1"/>`, formats.ErrCorrupt},
	{"prefix out of scope", `<a><b xmlns:p="u"/><p:c/></a>`, formats.ErrCorrupt},
	{"xml prefix", `<a xml:lang="en"/>`, nil},
	{"xmlns prefix", `<a xmlns:xmlns="u"/>`, formats.ErrCorrupt},
	{"xml rebound", `<a xmlns:xml="u"/>`, formats.ErrCorrupt},
	{"prefix to nothing", `<a xmlns:p=""/>`, formats.ErrCorrupt},
	{"default undone", `<a xmlns="u"><b xmlns=""/></a>`, nil},
	{"two colons", `<a:b:c xmlns:a="u"/>`, formats.ErrCorrupt},
	{"names", `<é.-1 _b="·"/>`, nil},
	{"name starts with digit", `<1/>`, formats.ErrCorrupt},
	{"control character", "<a>\x01</a>", formats.ErrCorrupt},
	{"nul", "<a>\x00</a>", formats.ErrCorrupt},
	{"not utf-8", "<a>\xff</a>", formats.ErrCorrupt},
	{"fffe", "<a>\ufffe</a>", formats.ErrCorrupt},
	{"cdata end in text", `<a>]]></a>`, formats.ErrCorrupt},
	{"spaces", "<a\n b\t=\r\n'1'\n></a\n>\n", nil},
	{"space before name", `< a/>`, formats.ErrCorrupt},
	{"slash", `<a / >`, formats.ErrCorrupt},
	{"depth", strings.Repeat("<a>", maxDepth+1) + strings.Repeat("</a>", maxDepth+1), formats.ErrLimit},
	{"depth of millions", strings.Repeat("<a>", 1<<20), formats.ErrLimit},
	{"attributes", "<a" + manyAttrs(maxAttrsOf+1) + "/>", formats.ErrLimit},
	{"attributes in millions", "<a" + manyAttrs(300_000) + "/>", formats.ErrLimit},
	{"elements", "<a>" + strings.Repeat("<b/>", maxElements) + "</a>", formats.ErrLimit},
	{"namespaces in scope", nestedScopes(), formats.ErrLimit},
	{"size", "<a>" + strings.Repeat(" ", MaxDescriptor) + "</a>", formats.ErrLimit},
	{"unclosed quote of megabytes", `<a b="` + strings.Repeat("x", 3<<20), formats.ErrCorrupt},
}

func manyAttrs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " a%x='1'", i)
	}
	return b.String()
}

func nestedScopes() string {
	var b strings.Builder
	for i := range 10 {
		b.WriteString("<a")
		for j := range 50 {
			fmt.Fprintf(&b, " xmlns:p%d_%d='u'", i, j)
		}
		b.WriteString(">")
	}
	return b.String()
}

func TestXML(t *testing.T) {
	for _, c := range xmlCases {
		d, err := parseXML([]byte(c.text))
		if c.class == nil && err != nil || c.class != nil && !errors.Is(err, c.class) {
			t.Errorf("%s: parseXML = %v, want %v", c.name, err, c.class)
		}
		if err == nil {
			if err := sameAsEncodingXML(d); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

// TestXMLLint holds the verdicts on well-formedness against xmllint's.
func TestXMLLint(t *testing.T) {
	for _, c := range xmlCases {
		if len(c.text) > 10_000 || errors.Is(c.class, errors.ErrUnsupported) || errors.Is(c.class, formats.ErrLimit) {
			continue
		}
		name := testimg.WriteFile(t, "case.xml", []byte(c.text))
		out, err := testimg.Try(t, "xmllint", "--noout", name)
		// Namespace errors are warnings to it.
		if bad := err != nil || strings.Contains(out, "error"); bad != (c.class != nil) && !strings.Contains(c.name, "prefix") &&
			!strings.Contains(c.name, "xml rebound") && !strings.Contains(c.name, "two colons") && !strings.Contains(c.name, "by namespace") {
			t.Errorf("%s: xmllint says %q, %v, we say %v", c.name, out, err, c.class)
		}
	}
}

// TestXMLMemory bounds what a hostile text allocates.
func TestXMLMemory(t *testing.T) {
	for _, c := range xmlCases {
		if len(c.text) < 100_000 {
			continue
		}
		text := []byte(c.text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		parseXML(text)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 48<<20 {
			t.Errorf("%s: %d MiB allocated", c.name, n>>20)
		}
	}
}

// sameAsEncodingXML compares elements, names, attributes and texts with what
// encoding/xml reads.
func sameAsEncodingXML(d *document) error {
	dec := xml.NewDecoder(bytes.NewReader(d.text))
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	p := &parser{d: d}
	i := int32(0)
	var stack []int32
	texts := map[int32]*strings.Builder{}
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("encoding/xml: %w", err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if int(i) >= len(d.elems) {
				return fmt.Errorf("element %s is missing", tok.Name.Local)
			}
			n := node{p, i}
			if n.local() != tok.Name.Local || n.ns() != tok.Name.Space {
				return fmt.Errorf("element %d is %q %q, want %q", i, n.ns(), n.local(), tok.Name)
			}
			e := n.elem()
			if int(e.attrHi-e.attrLo) != len(tok.Attr) {
				return fmt.Errorf("element %d has %d attributes, want %d", i, e.attrHi-e.attrLo, len(tok.Attr))
			}
			for k, a := range tok.Attr {
				b := d.attrs[e.attrLo+int32(k)]
				space := a.Name.Space
				if space == "xmlns" || a.Name.Local == "xmlns" && space == "" {
					space = nsXMLNS
				}
				// encoding/xml leaves line ends in values, we normalise them.
				norm := strings.NewReplacer("\n", " ", "\t", " ", "\r", " ").Replace
				if d.ns[b.ns] != space || string(d.text[b.local:b.name.hi]) != a.Name.Local || norm(d.decode(b.value)) != norm(a.Value) {
					return fmt.Errorf("element %d attribute %d: %q %q=%q, want %v", i, k, d.ns[b.ns], d.bytes(b.name), d.decode(b.value), a)
				}
			}
			stack = append(stack, i)
			texts[i] = &strings.Builder{}
			i++
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) > 0 {
				texts[stack[len(stack)-1]].Write(tok)
			}
		}
	}
	if int(i) != len(d.elems) {
		return fmt.Errorf("%d elements, want %d", len(d.elems), i)
	}
	for k := range d.elems {
		got, err := d.content(&d.elems[k], MaxDescriptor)
		if err != nil {
			return err
		}
		if want := texts[int32(k)].String(); got != want {
			return fmt.Errorf("text of element %d is %q, want %q", k, clip(got), clip(want))
		}
	}
	return nil
}

func TestXMLSamples(t *testing.T) {
	names, err := filepath.Glob("testdata/*.ovf")
	if err != nil || len(names) < 8 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		d, err := parseXML(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := sameAsEncodingXML(d); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Cut off anywhere, it is not well-formed.
		end := len(bytes.TrimRight(text, " \t\r\n"))
		for n := range end {
			if _, err := parseXML(text[:n:n]); err == nil {
				t.Fatalf("%s: cut off at %d it parses", name, n)
			}
			if n > 3000 {
				break
			}
		}
	}
}

// FuzzXML checks that what we take for well-formed, encoding/xml reads the
// same.
func FuzzXML(f *testing.F) {
	for _, c := range xmlCases {
		if len(c.text) < 10_000 {
			f.Add([]byte(c.text))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 1<<16 {
			return
		}
		d, err := parseXML(text)
		if err != nil {
			if d != nil {
				t.Fatal("a document with an error")
			}
			return
		}
		if bytes.Contains(text, []byte("standalone")) || bytes.Contains(text, []byte("encoding")) {
			return // pseudo-attributes of the declaration are read differently
		}
		if err := sameAsEncodingXML(d); err != nil && !strings.Contains(err.Error(), "encoding/xml") {
			t.Fatalf("%v\n%q", err, text)
		}
	})
}
