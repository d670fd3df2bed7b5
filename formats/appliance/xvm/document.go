package xvm

import (
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"imgmaint/formats"
)

// A Document is an xvm.xml of this project: see FORMAT.md.
type Document struct {
	Name        string                `json:"name,omitempty"`
	Description string                `json:"description,omitempty"`
	Release     string                `json:"release,omitempty"` // version of the package
	Machines    []formats.Machine     `json:"machines,omitempty"`
	Disks       []formats.PackageDisk `json:"disks"`
	Documents   []SideCar             `json:"documents,omitempty"`
}

// A SideCar is a member that is no disk: a bill of materials, a licence, the
// descriptor of another format.
type SideCar struct {
	Member  string `json:"member"`
	Type    string `json:"type"`              // MIME type
	Title   string `json:"title,omitempty"`   // for people
	Machine string `json:"machine,omitempty"` // id of the machine it is about, or ""
}

// ParseDocument reads an xvm.xml of this project. An element of our namespace
// that version 1 does not have is errors.ErrUnsupported; elements and
// attributes of other namespaces are passed over.
func ParseDocument(b []byte) (*Document, error) {
	root, err := parseTree(Name, b)
	if err != nil {
		return nil, err
	}
	if !ours(root) {
		return nil, formats.Unknown(Name, -1, "xvm.xml", "root element %.100q of namespace %.100q", root.name.Local, root.name.Space)
	}
	return decodeDocument(root)
}

func ours(root *node) bool { return root.name == xml.Name{Space: Namespace, Local: "package"} }

// shape is what an element of xvm.xml may hold. An element with text holds no
// elements.
type shape struct {
	attrs []string
	nodes []string
	once  []string // of nodes, those that may be there once only
	text  bool
}

var shapes = map[string]shape{
	"package": {attrs: []string{"version"}, nodes: []string{"name", "description", "release", "machine", "disk", "document"},
		once: []string{"name", "description", "release"}},
	"machine": {attrs: []string{"id"},
		nodes: []string{"name", "description", "product", "vendor", "version", "full-version", "os", "architecture", "vcpus", "memory",
			"use-disk", "network", "property", "licence"},
		once: []string{"name", "description", "product", "vendor", "version", "full-version", "os", "architecture", "vcpus", "memory"}},
	"disk":     {attrs: []string{"id", "member", "format", "compression", "size", "role", "device", "parent", "sha256"}},
	"document": {attrs: []string{"member", "type", "title", "machine"}},
	"use-disk": {attrs: []string{"id"}},
	"network":  {attrs: []string{"name"}},
	"property": {attrs: []string{"key", "type", "settable", "password"}, nodes: []string{"value", "label", "description"},
		once: []string{"value", "label", "description"}},
}

// check holds an element and all below against their shapes.
func check(n *node) error {
	s, ok := shapes[n.name.Local]
	if !ok {
		s = shape{text: true}
	}
	for _, a := range n.attrs {
		if a.Name.Space == "" && a.Name.Local != "xmlns" && !slices.Contains(s.attrs, a.Name.Local) {
			return formats.Unsupported(Name, n.off, n.name.Local, "attribute %.100q", a.Name.Local)
		}
	}
	if !s.text && strings.TrimSpace(n.text) != "" {
		return formats.Corrupt(Name, n.off, n.name.Local, "text between the elements")
	}
	seen := map[string]bool{}
	kept := n.nodes[:0]
	for _, c := range n.nodes {
		if c.name.Space != Namespace {
			continue
		}
		if !slices.Contains(s.nodes, c.name.Local) {
			return formats.Unsupported(Name, c.off, n.name.Local, "element %.100q", c.name.Local)
		}
		if seen[c.name.Local] && slices.Contains(s.once, c.name.Local) {
			return formats.Corrupt(Name, c.off, n.name.Local, "two elements %q", c.name.Local)
		}
		seen[c.name.Local] = true
		if err := check(c); err != nil {
			return err
		}
		kept = append(kept, c)
	}
	n.nodes = kept
	return nil
}

func decodeDocument(root *node) (*Document, error) {
	if v := root.attr("version"); v != "1" {
		return nil, formats.Unsupported(Name, root.off, "package", "version %.40q", v)
	}
	if err := check(root); err != nil {
		return nil, err
	}
	d := &Document{Name: root.child("name").text, Description: root.child("description").text, Release: root.child("release").text}
	for _, n := range root.nodes {
		switch n.name.Local {
		case "machine":
			m, err := decodeMachine(n)
			if err != nil {
				return nil, err
			}
			d.Machines = append(d.Machines, m)
		case "disk":
			disk := formats.PackageDisk{ID: n.attr("id"), Member: n.attr("member"), Format: n.attr("format"), Compression: n.attr("compression"),
				Role: n.attr("role"), Device: n.attr("device"), Parent: n.attr("parent"), SHA256: n.attr("sha256")}
			var err error
			if disk.Size, err = decimal(n.attr("size"), maxVirtual); err != nil {
				return nil, formats.Corrupt(Name, n.off, "disk size", "%v", err)
			}
			d.Disks = append(d.Disks, disk)
		case "document":
			d.Documents = append(d.Documents, SideCar{n.attr("member"), n.attr("type"), n.attr("title"), n.attr("machine")})
		}
	}
	if err := d.validate(); err != nil {
		return nil, err
	}
	return d, nil
}

func decodeMachine(n *node) (formats.Machine, error) {
	m := formats.Machine{ID: n.attr("id"), Name: n.child("name").text, Description: n.child("description").text,
		Product: n.child("product").text, Vendor: n.child("vendor").text, Version: n.child("version").text,
		FullVersion: n.child("full-version").text, OS: n.child("os").text, Arch: n.child("architecture").text}
	for _, c := range n.nodes {
		switch c.name.Local {
		case "vcpus":
			v, err := decimal(c.text, 1<<20)
			if err != nil {
				return m, formats.Corrupt(Name, c.off, "vcpus", "%v", err)
			}
			m.CPUs = int(v)
		case "memory":
			v, err := decimal(c.text, maxVirtual)
			if err != nil {
				return m, formats.Corrupt(Name, c.off, "memory", "%v", err)
			}
			m.Memory = v
		case "use-disk":
			m.Disks = append(m.Disks, c.attr("id"))
		case "network":
			m.Networks = append(m.Networks, c.attr("name"))
		case "licence":
			m.Licences = append(m.Licences, c.text)
		case "property":
			p := formats.MachineProperty{Key: c.attr("key"), Type: c.attr("type"), Value: c.child("value").text,
				Label: c.child("label").text, Description: c.child("description").text}
			for _, f := range []struct {
				name string
				to   *bool
			}{{"settable", &p.Settable}, {"password", &p.Password}} {
				switch v := c.attr(f.name); v {
				case "true":
					*f.to = true
				case "", "false":
				default:
					return m, formats.Corrupt(Name, c.off, "property", "%s is %.40q", f.name, v)
				}
			}
			m.Properties = append(m.Properties, p)
		}
	}
	return m, nil
}

// decimal reads a number of digits only; "" is 0.
func decimal(s string, limit int64) (int64, error) {
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || s[0] < '0' || s[0] > '9' || s[0] == '0' && len(s) > 1 {
		return 0, fmt.Errorf("%.40q is no number", s)
	}
	if v > limit {
		return 0, fmt.Errorf("%d, at most %d", v, limit)
	}
	return v, nil
}

// reserved reports whether a member name has a meaning of its own.
func reserved(name string) bool {
	switch name {
	case DescriptorName, ManifestName, ManifestSigName, SignatureName, Manifest256Name, Signature256, Descriptor2Name:
		return true
	}
	return false
}

// validate checks what FORMAT.md asks of a descriptor beyond its shape.
func (d *Document) validate() error {
	bad := func(field, msg string, args ...any) error { return formats.Corrupt(Name, -1, field, msg, args...) }
	switch {
	case len(d.Machines) > maxMachines:
		return formats.Limit(Name, -1, "machine", "%d, at most %d", len(d.Machines), maxMachines)
	case len(d.Disks) > maxDisks:
		return formats.Limit(Name, -1, "disk", "%d, at most %d", len(d.Disks), maxDisks)
	case len(d.Documents) > maxDocuments:
		return formats.Limit(Name, -1, "document", "%d, at most %d", len(d.Documents), maxDocuments)
	}
	for _, s := range []string{d.Name, d.Release} {
		if err := token("package", s, true); err != nil {
			return err
		}
	}
	members := map[string]bool{}
	member := func(field, name string) error {
		if !fs.ValidPath(name) || name == "." || token(field, name, false) != nil || len(name) > maxMember || reserved(name) {
			return bad(field, "member name %.200q", name)
		}
		if members[name] {
			return bad(field, "member %q is declared twice", name)
		}
		members[name] = true
		return nil
	}
	disks := map[string]string{} // id to parent
	for _, k := range d.Disks {
		if err := token("disk id", k.ID, false); err != nil {
			return err
		}
		if _, ok := disks[k.ID]; ok {
			return bad("disk id", "%q twice", k.ID)
		}
		disks[k.ID] = k.Parent
		if k.Member != "" {
			if err := member("disk member", k.Member); err != nil {
				return err
			}
		}
		for _, s := range []string{k.Format, k.Device} {
			if err := token("disk", s, true); err != nil {
				return err
			}
		}
		switch {
		case k.Compression != "gzip" && k.Compression != "none" && (k.Compression != "" || k.Member != ""):
			return formats.Unsupported(Name, -1, "disk compression", "%.40q", k.Compression)
		case k.Role != "" && k.Role != "partition" && k.Role != "disk":
			return bad("disk role", "%.40q", k.Role)
		case k.Size < 0 || k.Size > maxVirtual:
			return bad("disk size", "%d", k.Size)
		case k.ChunkSize != 0:
			return formats.Unsupported(Name, -1, "disk", "%q is in chunks", k.ID)
		case k.SHA256 != "" && !digest256(k.SHA256):
			return bad("disk sha256", "%.80q", k.SHA256)
		case k.Member == "" && (k.SHA256 != "" || k.Compression != ""):
			return bad("disk", "%q has no member, but a digest or compression of one", k.ID)
		case k.Member != "" && k.Format == "":
			return bad("disk format", "missing of %q", k.ID)
		}
	}
	for id := range disks {
		for at, steps := id, 0; disks[at] != ""; at, steps = disks[at], steps+1 {
			if _, ok := disks[disks[at]]; !ok || steps > len(disks) {
				return bad("disk parent", "%q of %q", disks[at], at)
			}
		}
	}
	machines := map[string]bool{}
	for i := range d.Machines {
		m := &d.Machines[i]
		if err := token("machine id", m.ID, false); err != nil {
			return err
		}
		if machines[m.ID] {
			return bad("machine id", "%q twice", m.ID)
		}
		machines[m.ID] = true
		if err := checkMachine(m, disks); err != nil {
			return err
		}
	}
	for _, s := range d.Documents {
		if err := member("document member", s.Member); err != nil {
			return err
		}
		if s.Machine != "" && !machines[s.Machine] {
			return bad("document machine", "%q is none", s.Machine)
		}
		if err := token("document type", s.Type, false); err != nil {
			return err
		}
		if err := token("document title", s.Title, true); err != nil {
			return err
		}
	}
	return nil
}

func checkMachine(m *formats.Machine, disks map[string]string) error {
	if len(m.Properties) > maxProperties || len(m.Disks) > maxDisks || len(m.Networks) > maxProperties || len(m.Licences) > maxProperties {
		return formats.Limit(Name, -1, "machine", "%q has too many parts", m.ID)
	}
	for _, s := range []string{m.Name, m.Product, m.Vendor, m.Version, m.FullVersion, m.OS, m.Arch} {
		if err := token("machine", s, true); err != nil {
			return err
		}
	}
	for _, s := range m.Networks {
		if err := token("network name", s, false); err != nil {
			return err
		}
	}
	if m.CPUs < 0 || m.CPUs > 1<<20 || m.Memory < 0 || m.Memory > maxVirtual {
		return formats.Corrupt(Name, -1, "machine", "%d processors, %d bytes of memory", m.CPUs, m.Memory)
	}
	used := map[string]bool{}
	for _, id := range m.Disks {
		if _, ok := disks[id]; !ok || used[id] {
			return formats.Corrupt(Name, -1, "use-disk", "%.100q is no disk, or there twice", id)
		}
		used[id] = true
	}
	keys := map[string]bool{}
	for _, p := range m.Properties {
		if err := token("property key", p.Key, false); err != nil {
			return err
		}
		if err := token("property type", p.Type, true); err != nil {
			return err
		}
		if keys[p.Key] {
			return formats.Corrupt(Name, -1, "property key", "%q twice", p.Key)
		}
		keys[p.Key] = true
	}
	return nil
}

// maxMember bounds a member's name in what we write, in bytes: what ustar
// holds without a prefix.
const maxMember = 100

// token checks a short value: one line, without control characters.
func token(field, s string, empty bool) error {
	if s == "" && !empty {
		return formats.Corrupt(Name, -1, field, "missing")
	}
	if len(s) > maxToken {
		return formats.Limit(Name, -1, field, "%d bytes, at most %d", len(s), maxToken)
	}
	for _, c := range s {
		if c < 0x20 || c == 0x7f {
			return formats.Corrupt(Name, -1, field, "control character in %.100q", s)
		}
	}
	if !validText(s) {
		return formats.Corrupt(Name, -1, field, "%.100q", s)
	}
	return nil
}

// validText reports whether XML 1.0 can hold s.
func validText(s string) bool {
	for _, c := range s {
		if c < 0x20 && c != '\n' && c != '\t' && c != '\r' || c == 0xfffe || c == 0xffff {
			return false
		}
	}
	return utf8.ValidString(s)
}

func digest256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}

// Marshal writes an xvm.xml: the same document gives the same bytes, and
// ParseDocument gives the document back.
func (d *Document) Marshal() ([]byte, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	var w xmlWriter
	w.b = append(w.b, xml.Header...)
	w.open(0, "package", "xmlns", Namespace, "version", "1")
	w.text(1, "name", d.Name)
	w.text(1, "description", d.Description)
	w.text(1, "release", d.Release)
	for i := range d.Machines {
		w.machine(&d.Machines[i])
	}
	for _, k := range d.Disks {
		w.empty(1, "disk", "id", k.ID, "member", k.Member, "format", k.Format, "compression", k.Compression, "size", number(k.Size),
			"role", k.Role, "device", k.Device, "parent", k.Parent, "sha256", k.SHA256)
	}
	for _, s := range d.Documents {
		w.empty(1, "document", "member", s.Member, "type", s.Type, "title", s.Title, "machine", s.Machine)
	}
	w.close(0, "package")
	if w.err != nil {
		return nil, w.err
	}
	if len(w.b) > MaxDescriptor {
		return nil, formats.Limit(Name, -1, "descriptor", "%d bytes, at most %d", len(w.b), MaxDescriptor)
	}
	return w.b, nil
}

func number(v int64) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatInt(v, 10)
}

// An xmlWriter writes indented XML. Attributes and texts that are empty are
// left out.
type xmlWriter struct {
	b   []byte
	err error
}

func (w *xmlWriter) escape(s string) {
	if !validText(s) {
		w.err = formats.Corrupt(Name, -1, "xvm.xml", "%.100q cannot be written in XML", s)
		return
	}
	for _, c := range s {
		switch {
		case c == '&':
			w.b = append(w.b, "&amp;"...)
		case c == '<':
			w.b = append(w.b, "&lt;"...)
		case c == '>':
			w.b = append(w.b, "&gt;"...)
		case c == '"':
			w.b = append(w.b, "&quot;"...)
		case c == '\t' || c == '\r':
			w.b = fmt.Appendf(w.b, "&#%d;", c)
		default:
			w.b = utf8.AppendRune(w.b, c)
		}
	}
}

func (w *xmlWriter) tag(depth int, name, end string, attrs []string) {
	for range depth {
		w.b = append(w.b, "  "...)
	}
	w.b = append(append(w.b, '<'), name...)
	for i := 0; i < len(attrs); i += 2 {
		if attrs[i+1] == "" {
			continue
		}
		w.b = append(append(append(w.b, ' '), attrs[i]...), `="`...)
		w.escape(attrs[i+1])
		w.b = append(w.b, '"')
	}
	w.b = append(w.b, end...)
}

func (w *xmlWriter) open(depth int, name string, attrs ...string) { w.tag(depth, name, ">\n", attrs) }

func (w *xmlWriter) empty(depth int, name string, attrs ...string) {
	w.tag(depth, name, "/>\n", attrs)
}

func (w *xmlWriter) close(depth int, name string) { w.tag(depth, "/"+name, ">\n", nil) }

func (w *xmlWriter) text(depth int, name, s string) {
	if s == "" {
		return
	}
	w.tag(depth, name, ">", nil)
	w.escape(s)
	w.tag(0, "/"+name, ">\n", nil)
}

func (w *xmlWriter) machine(m *formats.Machine) {
	w.open(1, "machine", "id", m.ID)
	w.text(2, "name", m.Name)
	w.text(2, "description", m.Description)
	w.text(2, "product", m.Product)
	w.text(2, "vendor", m.Vendor)
	w.text(2, "version", m.Version)
	w.text(2, "full-version", m.FullVersion)
	w.text(2, "os", m.OS)
	w.text(2, "architecture", m.Arch)
	w.text(2, "vcpus", number(int64(m.CPUs)))
	w.text(2, "memory", number(m.Memory))
	for _, id := range m.Disks {
		w.empty(2, "use-disk", "id", id)
	}
	for _, n := range m.Networks {
		w.empty(2, "network", "name", n)
	}
	for _, p := range m.Properties {
		flag := map[bool]string{true: "true"}
		w.open(2, "property", "key", p.Key, "type", p.Type, "settable", flag[p.Settable], "password", flag[p.Password])
		w.text(3, "value", p.Value)
		w.text(3, "label", p.Label)
		w.text(3, "description", p.Description)
		w.close(2, "property")
	}
	for _, l := range m.Licences {
		if l == "" {
			w.err = formats.Corrupt(Name, -1, "licence", "empty")
		}
		w.text(2, "licence", l)
	}
	w.close(1, "machine")
}
