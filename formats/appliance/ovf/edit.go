package ovf

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An Editor changes a descriptor by replacing byte ranges of its text.
// Everything that is not the object of a change stays as it is, to the byte.
//
// A method that returns an error has changed nothing. An Editor is not safe
// for concurrent use.
type Editor struct {
	env  *Envelope
	pend []patch // replacements of attribute values, not yet made
	text []byte  // as the editor began, for Changed
}

// NewEditor returns an editor of the descriptor that e was parsed from; e
// itself does not change.
func NewEditor(e *Envelope) *Editor { return &Editor{env: e, text: e.Bytes()} }

// Envelope is the descriptor as edited so far.
func (ed *Editor) Envelope() (*Envelope, error) {
	if err := ed.commit(nil); err != nil {
		return nil, err
	}
	return ed.env, nil
}

// Bytes is the text of the descriptor as edited so far.
func (ed *Editor) Bytes() ([]byte, error) {
	if err := ed.commit(nil); err != nil {
		return nil, err
	}
	return ed.env.Bytes(), nil
}

// Changed reports whether the text differs from what the editor began with.
func (ed *Editor) Changed() (bool, error) {
	b, err := ed.Bytes()
	return !bytes.Equal(b, ed.text), err
}

// commit makes the pending patches and more, and parses the result. When it
// does not parse the editor stays as it was.
func (ed *Editor) commit(more []patch) error {
	return ed.make(append(slices.Clone(ed.pend), more...))
}

func (ed *Editor) make(ps []patch) error {
	if len(ps) == 0 {
		return nil
	}
	opts := ed.env.p.opts
	env, err := Parse(apply(ed.env.Bytes(), ps), &opts)
	if err != nil {
		return err
	}
	ed.env, ed.pend = env, nil
	return nil
}

// put queues replacements of attribute values, in place of those queued for
// the same ones or within what goes. Anything else is made at once, so that offsets stay those of
// the text.
func (ed *Editor) put(ps []patch) error {
	all := slices.DeleteFunc(slices.Clone(ed.pend), func(old patch) bool {
		return slices.ContainsFunc(ps, func(p patch) bool { return p.lo <= old.lo && old.hi <= p.hi })
	})
	all = append(all, ps...)
	if slices.ContainsFunc(ps, func(p patch) bool { return p.lo == p.hi || p.s == "" }) {
		return ed.make(all)
	}
	ed.pend = all
	return nil
}

// change makes the patch that gives attribute local the value, "" to remove
// it. There is none when the attribute says so already; same is set when it
// does in other words.
func (ed *Editor) change(n node, local, value string, same bool) []patch {
	a := n.findAttr(local)
	switch {
	case a == nil && value == "":
		return nil
	case a == nil:
		return []patch{n.setAttr(local, value)}
	case same || n.p.d.decode(a.value) == value:
		back := patch{int(a.value.lo), int(a.value.hi), string(n.p.d.bytes(a.value))}
		if slices.ContainsFunc(ed.pend, func(p patch) bool { return p.lo == back.lo && p.hi == back.hi }) {
			return []patch{back}
		}
		return nil
	case value == "":
		return []patch{n.dropAttr(a)}
	}
	return []patch{n.p.setValue(a, value)}
}

func notFound(what, id string) error { return fmt.Errorf("%s: no %s %q", Name, what, clip(id)) }

// one finds the only element of a list with that id.
func one[T any](list []T, what, id string, get func(*T) string) (*T, error) {
	var found *T
	for i := range list {
		if get(&list[i]) == id {
			if found != nil {
				return nil, fmt.Errorf("%s: two of %s %q", Name, what, clip(id))
			}
			found = &list[i]
		}
	}
	if found == nil {
		return nil, notFound(what, id)
	}
	return found, nil
}

// orEmpty writes a number, "" for a negative one.
func orEmpty(n int64) string {
	if n < 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func checkTexts(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := checkText(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// SetFile changes the References entry with f.ID to say what f says. What is
// the same already is left alone.
func (ed *Editor) SetFile(f File) error {
	old, err := one(ed.env.Files, "file", f.ID, func(f *File) string { return f.ID })
	if err != nil {
		return err
	}
	if f.Href == "" {
		return fmt.Errorf("%s: file %q without href", Name, f.ID)
	}
	if err := checkTexts("File@href", f.Href, "File@compression", f.Compression); err != nil {
		return err
	}
	n := ed.env.p.nodeAt(old.off)
	chunk := int64(-1)
	if f.ChunkSize > 0 {
		chunk = f.ChunkSize
	}
	ps := ed.change(n, "href", f.Href, false)
	ps = append(ps, ed.change(n, "size", orEmpty(f.Size), f.Size == old.Size)...)
	ps = append(ps, ed.change(n, "compression", f.Compression, f.Compression == old.Compression)...)
	return ed.put(append(ps, ed.change(n, "chunkSize", orEmpty(chunk), f.ChunkSize == old.ChunkSize)...))
}

// AddFile adds an entry at the end of References.
func (ed *Editor) AddFile(f File) error {
	if err := ed.commit(nil); err != nil {
		return err
	}
	if ed.env.File(f.ID) != nil {
		return fmt.Errorf("%s: file %q exists", Name, f.ID)
	}
	if f.ID == "" || f.Href == "" {
		return fmt.Errorf("%s: file without id or href", Name)
	}
	if err := checkTexts("File@id", f.ID, "File@href", f.Href, "File@compression", f.Compression); err != nil {
		return err
	}
	root := node{ed.env.p, 0}
	refs := root.first("References")
	parent := refs
	if refs.isZero() {
		parent = root
	}
	m := parent.names()
	line := fmt.Sprintf(`<%sFile%s %shref="%s" %sid="%s"`, m.elem, m.decls, m.attr, escapeAttr(f.Href), m.attr, escapeAttr(f.ID))
	if f.Size >= 0 {
		line += fmt.Sprintf(` %ssize="%d"`, m.attr, f.Size)
	}
	if f.Compression != "" {
		line += fmt.Sprintf(` %scompression="%s"`, m.attr, escapeAttr(f.Compression))
	}
	if f.ChunkSize > 0 {
		line += fmt.Sprintf(` %schunkSize="%d"`, m.attr, f.ChunkSize)
	}
	line += "/>"
	if refs.isZero() {
		return ed.commit([]patch{insert(root, node{}, []string{"<" + m.elem + "References>", "\t" + line, "</" + m.elem + "References>"})})
	}
	return ed.commit([]patch{insert(refs, refs.lastChild(func(c node) bool { return true }), []string{line})})
}

// RemoveFile removes an entry of References. Disks that refer to it are the
// caller's to change.
func (ed *Editor) RemoveFile(id string) error {
	if err := ed.commit(nil); err != nil {
		return err
	}
	f, err := one(ed.env.Files, "file", id, func(f *File) string { return f.ID })
	if err != nil {
		return err
	}
	return ed.commit([]patch{ed.env.p.nodeAt(f.off).drop()})
}

// capacity writes bytes in units when they divide it, else in bytes.
func capacity(n int64, d *Disk) (number, units string) {
	if d.unit > 1 && n%d.unit == 0 {
		return strconv.FormatInt(n/d.unit, 10), d.Units
	}
	if d.unit > 1 {
		return strconv.FormatInt(n, 10), "byte"
	}
	return strconv.FormatInt(n, 10), d.Units
}

// SetDisk changes the disk with d.ID to say what d says: FileRef, Capacity
// (in the units the descriptor uses, if they divide it), FormatURI,
// PopulatedSize and ParentRef. Other fields are not written; the UUID is
// SetDiskUUID's.
func (ed *Editor) SetDisk(d Disk) error {
	old, err := one(ed.env.Disks, "disk", d.ID, func(d *Disk) string { return d.ID })
	if err != nil {
		return err
	}
	if d.Capacity < 0 && (d.CapacityProperty == "" || d.CapacityProperty != old.CapacityProperty) {
		return fmt.Errorf("%s: disk %q without capacity", Name, d.ID)
	}
	if err := checkTexts("Disk@fileRef", d.FileRef, "Disk@format", d.FormatURI, "Disk@parentRef", d.ParentRef); err != nil {
		return err
	}
	n := ed.env.p.nodeAt(old.off)
	var ps []patch
	if d.Capacity >= 0 {
		number, units := capacity(d.Capacity, old)
		same := d.Capacity == old.Capacity
		if same {
			units = old.Units
		}
		ps = append(ps, ed.change(n, "capacity", number, same)...)
		ps = append(ps, ed.change(n, "capacityAllocationUnits", units, same)...)
	}
	ps = append(ps, ed.change(n, "fileRef", d.FileRef, false)...)
	ps = append(ps, ed.change(n, "format", d.FormatURI, false)...)
	ps = append(ps, ed.change(n, "populatedSize", orEmpty(d.PopulatedSize), d.PopulatedSize == old.PopulatedSize)...)
	return ed.put(append(ps, ed.change(n, "parentRef", d.ParentRef, false)...))
}

// AddDisk adds a disk at the end of DiskSection. Hardware that uses it is the
// caller's to add.
func (ed *Editor) AddDisk(d Disk) error {
	if err := ed.commit(nil); err != nil {
		return err
	}
	if ed.env.Disk(d.ID) != nil {
		return fmt.Errorf("%s: disk %q exists", Name, d.ID)
	}
	if d.ID == "" || d.Capacity < 0 {
		return fmt.Errorf("%s: disk without id or capacity", Name)
	}
	if err := checkTexts("Disk@diskId", d.ID, "Disk@fileRef", d.FileRef, "Disk@format", d.FormatURI, "Disk@parentRef", d.ParentRef); err != nil {
		return err
	}
	root := node{ed.env.p, 0}
	sec := root.first("DiskSection")
	parent := sec
	if sec.isZero() {
		parent = root
	}
	m := parent.names()
	line := fmt.Sprintf(`<%sDisk%s %scapacity="%d" %scapacityAllocationUnits="byte" %sdiskId="%s"`,
		m.elem, m.decls, m.attr, d.Capacity, m.attr, m.attr, escapeAttr(d.ID))
	for _, a := range []struct{ local, value string }{
		{"fileRef", d.FileRef}, {"format", d.FormatURI}, {"parentRef", d.ParentRef},
	} {
		if a.value != "" {
			line += fmt.Sprintf(` %s%s="%s"`, m.attr, a.local, escapeAttr(a.value))
		}
	}
	if d.PopulatedSize >= 0 {
		line += fmt.Sprintf(` %spopulatedSize="%d"`, m.attr, d.PopulatedSize)
	}
	line += "/>"
	if sec.isZero() {
		return ed.commit([]patch{insert(root, root.first("References"), []string{"<" + m.elem + "DiskSection>",
			"\t<" + m.elem + "Info>Virtual disks</" + m.elem + "Info>", "\t" + line, "</" + m.elem + "DiskSection>"})})
	}
	return ed.commit([]patch{insert(sec, sec.lastChild(func(c node) bool { return true }), []string{line})})
}

// RemoveDisk removes a disk of DiskSection.
func (ed *Editor) RemoveDisk(id string) error {
	if err := ed.commit(nil); err != nil {
		return err
	}
	d, err := one(ed.env.Disks, "disk", id, func(d *Disk) string { return d.ID })
	if err != nil {
		return err
	}
	return ed.commit([]patch{ed.env.p.nodeAt(d.off).drop()})
}

// SetDiskUUID gives a disk a new UUID in all places where VirtualBox keeps
// it: vbox:uuid of the Disk, and the media of vbox:Machine, whose uuid
// attributes repeat it in braces. It returns how many places changed; a
// package that VirtualBox did not write has none.
func (ed *Editor) SetDiskUUID(id, uuid string) (int, error) {
	if err := ed.commit(nil); err != nil {
		return 0, err
	}
	d, err := one(ed.env.Disks, "disk", id, func(d *Disk) string { return d.ID })
	if err != nil {
		return 0, err
	}
	uuid = strings.ToLower(strings.Trim(uuid, "{}"))
	if !isUUID(uuid) {
		return 0, fmt.Errorf("%s: %q is not a UUID", Name, clip(uuid))
	}
	old := strings.Trim(d.UUID, "{}")
	if !isUUID(strings.ToLower(old)) {
		return 0, nil
	}
	p := ed.env.p
	var ps []patch
	if a := p.nodeAt(d.off).findAttrNS(nsVBox, "uuid"); a != nil {
		ps = append(ps, p.setValue(a, uuid))
	}
	for i := range p.d.elems {
		m := node{p, int32(i)}
		if m.ns() != nsVBox || m.local() != "Machine" {
			continue
		}
		e := m.elem()
		for k := e.attrLo; int(k) < len(p.d.attrs) && p.d.attrs[k].name.lo < e.end; k++ {
			a := &p.d.attrs[k]
			if v := p.d.decode(a.value); strings.EqualFold(v, "{"+old+"}") {
				ps = append(ps, p.setValue(a, "{"+uuid+"}"))
			} else if strings.EqualFold(v, old) {
				ps = append(ps, p.setValue(a, uuid))
			}
		}
	}
	return len(ps), ed.commit(ps)
}

// isUUID reports whether s is a UUID in lower case.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}
