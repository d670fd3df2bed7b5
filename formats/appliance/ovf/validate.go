package ovf

import (
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strings"
)

// ValidateOptions gives Validate what the descriptor alone does not hold. A
// nil function skips its rules.
type ValidateOptions struct {
	// VirtualSize is the size in bytes of the disk in a disk's file; ok is
	// false when it is not known.
	VirtualSize func(d *Disk) (size int64, ok bool)
	// FileSize is the size of a file as stored, all chunks together, and
	// decompressed (-1 when not known); ok is false when it is not there.
	FileSize func(f *File) (stored, decoded int64, ok bool)
}

// Validate checks the rules of DSP0243 and its schema that a descriptor can
// break while each value is well-formed, and lists what it finds in document
// order of the rules. An envelope without a Fault is one that importers take.
func (e *Envelope) Validate(opts *ValidateOptions) []Finding {
	if opts == nil {
		opts = &ValidateOptions{}
	}
	v := &validator{Envelope: e, opts: opts}
	v.list = slices.Clone(e.Notes)
	v.index()
	v.order()
	v.fileRules()
	v.diskRules()
	v.shared()
	e.Content.Walk(v.system)
	v.infos()
	return v.done()
}

type validator struct {
	*Envelope
	findings
	opts *ValidateOptions

	files, disks, networks, configs, groups map[string]bool // ids
	keys                                    map[string]bool // of properties, short and full
}

// index collects the ids that others refer to.
func (v *validator) index() {
	v.files, v.disks, v.networks = ids(v.Files, func(f *File) string { return f.ID }), ids(v.Disks, func(d *Disk) string { return d.ID }),
		ids(v.Networks, func(n *Network) string { return n.Name })
	v.configs, v.groups = ids(v.Configurations, func(c *Configuration) string { return c.ID }), ids(v.Groups, func(g *Group) string { return g.ID })
	v.keys = map[string]bool{}
	v.Content.Walk(func(s *System) {
		for i := range s.Products {
			for _, x := range s.Products[i].Properties {
				v.keys[x.Key], v.keys[s.Products[i].FullKey(x.Key)] = true, true
			}
		}
	})
}

func ids[T any](list []T, id func(*T) string) map[string]bool {
	m := make(map[string]bool, len(list))
	for i := range list {
		m[id(&list[i])] = true
	}
	return m
}

// order checks the order of the parts of the envelope (section 7): references,
// sections, content, strings.
func (v *validator) order() {
	rank := 0
	for c := range (node{v.p, 0}).children() {
		r := 1
		switch c.name() {
		case "References":
			r = 0
		case "VirtualSystem", "VirtualSystemCollection":
			r = 2
		case "Strings":
			r = 3
		}
		if r < rank {
			v.add(Warning, "schema", c.off(), "<%s> comes too late", c.qname())
		}
		rank = max(rank, r)
	}
}

// unique reports a second of an id.
func (v *validator) unique(seen map[string]bool, what, id string, off int64) {
	if seen[id] {
		v.add(Fault, "unique-id", off, "second %s %q", what, clip(id))
	}
	seen[id] = true
}

// HrefName is the name of a member that a File refers to, by its literal
// spelling and with percent signs decoded; exporters write either. Both are
// "" when the reference leads out of the package: a URL, an absolute path, a
// path with "..".
func HrefName(href string) (literal, decoded string) {
	if strings.Contains(href, "://") {
		return "", ""
	}
	if i := strings.IndexByte(href, ':'); i > 0 && !strings.Contains(href[:i], "/") {
		if u, err := url.Parse(href); err == nil && u.Scheme != "" {
			return "", ""
		}
	}
	ok := func(s string) string {
		s = strings.TrimPrefix(s, "./")
		if s == "." || !fs.ValidPath(s) || strings.ContainsAny(s, "\x00\\") {
			return ""
		}
		return s
	}
	literal = ok(href)
	if d, err := url.PathUnescape(href); err == nil && d != href {
		decoded = ok(d)
	}
	return literal, decoded
}

// ChunkName is the name of chunk i of a chunked file (DSP0243 section 7.1).
func ChunkName(href string, i int) string { return fmt.Sprintf("%s.%09d", href, i) }

func (v *validator) fileRules() {
	ids, hrefs := map[string]bool{}, map[string]bool{}
	for i := range v.Files {
		f := &v.Files[i]
		v.unique(ids, "file", f.ID, f.off)
		if hrefs[f.Href] {
			v.add(Warning, "unique-href", f.off, "second file %q", clip(f.Href))
		}
		hrefs[f.Href] = true
		literal, decoded := HrefName(f.Href)
		switch {
		case literal == "" && decoded == "":
			v.add(Fault, "href", f.off, "%q is not within the package", clip(f.Href))
			continue
		case f.Compression != "" && f.Compression != "gzip":
			v.add(Fault, "compression", f.off, "file %q: %q is unknown", clip(f.ID), clip(f.Compression))
		}
		if v.opts.FileSize == nil {
			continue
		}
		stored, inflated, ok := v.opts.FileSize(f)
		switch {
		case !ok:
			v.add(Fault, "missing", f.off, "file %q: %q is not in the package", clip(f.ID), clip(f.Href))
		case f.Size >= 0 && f.Size != stored && !(f.Compression != "" && f.Size == inflated):
			v.add(Fault, "size", f.off, "file %q: %d bytes declared, %d found", clip(f.ID), f.Size, stored)
		}
	}
}

func (v *validator) diskRules() {
	ids := map[string]bool{}
	for i := range v.Disks {
		d := &v.Disks[i]
		v.unique(ids, "disk", d.ID, d.off)
		if d.FileRef != "" && !v.files[d.FileRef] {
			v.add(Fault, "references", d.off, "disk %q: no file %q", clip(d.ID), clip(d.FileRef))
		}
		if d.FormatURI == "" {
			v.add(Fault, "schema", d.off, "disk %q without format", clip(d.ID))
		} else if d.Format == "" {
			v.add(Warning, "format", d.off, "disk %q: format %q is unknown", clip(d.ID), clip(d.FormatURI))
		}
		if d.Capacity >= 0 && d.PopulatedSize > d.Capacity {
			v.add(Warning, "capacity", d.off, "disk %q: populatedSize %d exceeds the capacity %d", clip(d.ID), d.PopulatedSize, d.Capacity)
		}
		if d.CapacityProperty != "" && !v.keys[d.CapacityProperty] {
			v.add(Fault, "references", d.off, "disk %q: no property %q", clip(d.ID), clip(d.CapacityProperty))
		}
		if v.opts.VirtualSize != nil && d.FileRef != "" && d.Capacity >= 0 {
			// In units larger than a byte the capacity is rounded up.
			if size, ok := v.opts.VirtualSize(d); ok && (size > d.Capacity || size <= d.Capacity-d.unit) {
				v.add(Fault, "capacity", d.off, "disk %q: capacity is %d bytes, the disk has %d", clip(d.ID), d.Capacity, size)
			}
		}
	}
	v.parents()
}

// parents checks that parentRef leads to disks and not in a circle.
func (v *validator) parents() {
	parent := map[string]string{}
	for _, d := range v.Disks {
		parent[d.ID] = d.ParentRef
	}
	for _, d := range v.Disks {
		if d.ParentRef == "" {
			continue
		}
		if _, ok := parent[d.ParentRef]; !ok {
			v.add(Fault, "references", d.off, "disk %q: no parent %q", clip(d.ID), clip(d.ParentRef))
			continue
		}
		// Two walkers, one twice as fast, meet in a circle.
		slow, fast := d.ID, d.ID
		for fast != "" && parent[fast] != "" {
			slow, fast = parent[slow], parent[parent[fast]]
			if slow == fast {
				v.add(Fault, "references", d.off, "disk %q is its own ancestor", clip(d.ID))
				break
			}
		}
	}
}

// shared checks what is said once for the envelope.
func (v *validator) shared() {
	networks, configs, systems, groups := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, n := range v.Networks {
		v.unique(networks, "network", n.Name, n.off)
	}
	defaults := 0
	for _, c := range v.Configurations {
		v.unique(configs, "configuration", c.ID, c.off)
		if c.Default {
			defaults++
		}
	}
	if defaults > 1 {
		v.add(Warning, "schema", -1, "%d default configurations", defaults)
	}
	for _, g := range v.Groups {
		v.unique(groups, "placement group", g.ID, g.off)
	}
	v.Content.Walk(func(s *System) { v.unique(systems, "system", s.ID, s.off) })
	for _, b := range v.Strings {
		if b.FileRef != "" && !v.files[b.FileRef] {
			v.add(Fault, "references", -1, "strings: no file %q", clip(b.FileRef))
		}
	}
}

func (v *validator) config(id string, off int64) {
	if id != "" && !v.configs[id] {
		v.add(Fault, "references", off, "no configuration %q", clip(id))
	}
}

func (v *validator) system(s *System) {
	if !s.Collection && len(s.Hardware) == 0 && s.OS == nil && len(s.Products) == 0 && len(s.Annotations) == 0 && len(s.Unknown) == 0 {
		v.add(Warning, "schema", s.off, "system %q is empty", clip(s.ID))
	}
	for i := range s.Hardware {
		v.hardware(s, &s.Hardware[i])
	}
	products := map[string]bool{}
	for i := range s.Products {
		p := &s.Products[i]
		v.unique(products, "product", p.Class+"\x00"+p.Instance, p.off)
		keys := map[string]bool{}
		for j := range p.Properties {
			x := &p.Properties[j]
			v.unique(keys, "property", x.Key, x.off)
			if strings.ContainsAny(x.Key, ".:") {
				v.add(Warning, "property", x.off, "key %q holds a period or a colon", clip(x.Key))
			}
			for _, y := range x.Values {
				v.config(y.Configuration, x.off)
			}
		}
		for _, ic := range p.Icons {
			if !v.files[ic.FileRef] {
				v.add(Warning, "references", p.off, "icon: no file %q", clip(ic.FileRef))
			}
		}
	}
	below := ids(s.Systems, func(c **System) string { return (*c).ID })
	for _, it := range s.Startup {
		if !below[it.ID] {
			v.add(Warning, "references", s.off, "startup: no system %q", clip(it.ID))
		}
	}
	for _, f := range s.Files {
		if !v.files[f.FileRef] {
			v.add(Fault, "references", s.off, "environment file: no file %q", clip(f.FileRef))
		}
	}
	if s.Placement != "" && !v.groups[s.Placement] {
		v.add(Warning, "references", s.off, "no placement group %q", clip(s.Placement))
	}
}

func (v *validator) hardware(s *System, h *Hardware) {
	ids := map[string]bool{}
	for i := range h.Items {
		it := &h.Items[i]
		if it.InstanceID == "" {
			v.add(Fault, "schema", it.off, "item without InstanceID")
		} else if len(it.Configurations) == 0 && it.Bound != "min" && it.Bound != "max" {
			v.unique(ids, "item", it.InstanceID, it.off)
		} else {
			ids[it.InstanceID] = true
		}
	}
	for i := range h.Items {
		it := &h.Items[i]
		for _, c := range it.Configurations {
			v.config(c, it.off)
		}
		if it.Parent != "" && !ids[it.Parent] && !strings.Contains(it.Parent, "/") {
			v.add(Fault, "references", it.off, "item %q: no parent %q", clip(it.InstanceID), clip(it.Parent))
		}
		if it.Units != "" {
			if _, err := ParseUnits(it.Units); err != nil {
				v.add(Warning, "units", it.off, "item %q: %v", clip(it.InstanceID), err)
			}
		}
		for _, r := range it.HostResources {
			switch kind, id := HostRef(r); {
			case kind == "disk" && !v.disks[id], kind == "file" && !v.files[id]:
				v.add(Fault, "references", it.off, "item %q: no %s %q", clip(it.InstanceID), kind, clip(id))
			}
		}
		if it.Type == TypeEthernet || it.Element == "EthernetPortItem" {
			for _, c := range it.Connections {
				if !v.networks[c] {
					v.add(Fault, "references", it.off, "item %q: no network %q", clip(it.InstanceID), clip(c))
				}
			}
		}
		v.rasdOrder(it)
	}
}

// rasdOrder checks that the properties of an item come in the order of their
// schema, which is alphabetical.
func (v *validator) rasdOrder(it *Item) {
	last := ""
	for x := range v.p.nodeAt(it.off).children() {
		if !strings.HasPrefix(x.ns(), nsCIM) {
			continue
		}
		if l := x.local(); l < last {
			v.add(Warning, "rasd-order", x.off(), "%s after %s", l, last)
			return
		} else {
			last = l
		}
	}
}

// infos checks that every section begins with Info.
func (v *validator) infos() {
	check := func(n node, always bool) {
		if first := n.elem().child; first >= 0 && (node{v.p, first}).name() == "Info" {
			return
		}
		if always || !n.first("Info").isZero() {
			v.add(Fault, "info-first", n.off(), "<%s> does not begin with Info", n.qname())
		}
	}
	section := func(c node) {
		switch name := c.name(); {
		case name == "References", name == "Strings", name == "Info", name == "Name", name == "VirtualSystem", name == "VirtualSystemCollection":
		case name == "" && c.ns() == "":
		default:
			check(c, strings.HasSuffix(c.local(), "Section"))
		}
	}
	for c := range (node{v.p, 0}).children() {
		section(c)
	}
	v.Content.Walk(func(s *System) {
		n := node{v.p, s.node}
		check(n, true)
		for c := range n.children() {
			section(c)
		}
	})
}
