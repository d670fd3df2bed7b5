package ovf

import (
	"strings"

	"imgmaint/formats"
)

// ParseOptions changes what Parse accepts.
type ParseOptions struct {
	// AllowRequired keeps unknown sections that are required, and lists them
	// in Notes, where they are refused otherwise. For showing, verifying and
	// repacking; not for deploying.
	AllowRequired bool
}

// parser holds what parsing an envelope needs and what its nodes refer to.
type parser struct {
	d     *document
	env   *Envelope
	ns    string // of the envelope
	loose bool   // elements in no namespace are of OVF
	opts  ParseOptions
	notes findings
	texts int // bytes of text decoded

	items, systems, properties int
}

// ours reports whether ns is the envelope's namespace.
func (p *parser) ours(ns string) bool { return ns == p.ns || ns == "" && p.loose }

// Parse parses a descriptor. It keeps text, which must not be changed
// afterwards.
//
// What is refused: text that is not well-formed XML or over a limit, values
// that are not of their type, entries without the attribute that identifies
// them, and sections this package does not know unless they say
// ovf:required="false" (section 7.4: the default is true).
func Parse(text []byte, opts *ParseOptions) (*Envelope, error) {
	d, err := parseXML(text)
	if err != nil {
		return nil, err
	}
	p := &parser{d: d, env: &Envelope{}}
	if opts != nil {
		p.opts = *opts
	}
	p.env.p = p
	if err := p.root(); err != nil {
		return nil, err
	}
	p.env.Notes = p.notes.done()
	return p.env, nil
}

// root identifies the version and reads the envelope.
func (p *parser) root() error {
	root := node{p, 0}
	if root.local() != "Envelope" {
		return formats.Unknown(Name, root.off(), "", "root element %q", clip(root.qname()))
	}
	p.ns = root.ns()
	if version, ok := strings.CutPrefix(p.ns, nsEnvelope); ok {
		if v := strings.TrimSuffix(version, "/"); v != version {
			p.notes.add(Warning, "namespace", root.off(), "namespace %q ends with a slash", p.ns)
			version = v
		}
		p.env.Version = version
	}
	switch {
	case p.env.Version == "1" || p.env.Version == "2":
	case p.ns == nsEnvelope09:
		return formats.Unsupported(Name, root.off(), "Envelope", "OVF 0.9, from before the standard")
	case p.env.Version != "":
		return formats.Unsupported(Name, root.off(), "Envelope", "OVF version %q", clip(p.env.Version))
	default:
		return formats.Unknown(Name, root.off(), "", "Envelope in namespace %q", clip(p.ns))
	}
	if root.elem().local != root.elem().name.lo { // prefixed: children may be in no namespace
		for c := range root.children() {
			if c.ns() == "" {
				p.loose = true
				p.notes.add(Warning, "namespace", c.off(), "<%s> is in no namespace", c.qname())
				break
			}
		}
	}
	p.env.Lang, _ = root.attrNS(nsXML, "lang")
	return p.envelope(root)
}

func (p *parser) envelope(root node) error {
	refs := 0
	for c := range root.children() {
		var err error
		switch c.name() {
		case "References":
			if refs++; refs > 1 {
				p.notes.add(Warning, "schema", c.off(), "second References")
			}
			err = p.references(c)
		case "DiskSection":
			err = p.disks(c, "Disk", false)
		case "SharedDiskSection":
			err = p.disks(c, "SharedDisk", true)
		case "NetworkSection":
			err = p.networks(c)
		case "DeploymentOptionSection":
			err = p.configurations(c)
		case "PlacementGroupSection":
			p.env.Groups = append(p.env.Groups, Group{c.str("id"), c.str("policy"), c.off()})
		case "EncryptionSection":
			p.encryption(c)
		case "VirtualSystem", "VirtualSystemCollection":
			if p.env.Content != nil {
				return formats.Corrupt(Name, c.off(), c.name(), "second content of the envelope")
			}
			p.env.Content, err = p.system(c, 0)
		case "Strings":
			err = p.strings(c)
		default:
			err = p.unknown(c, &p.env.Unknown)
		}
		if err != nil {
			return err
		}
	}
	if p.env.Content == nil {
		p.notes.add(Fault, "schema", root.off(), "neither VirtualSystem nor VirtualSystemCollection")
	}
	return nil
}

// unknown keeps a section this package does not know, or refuses it.
func (p *parser) unknown(c node, list *[]Section) error {
	required, err := c.flag("required", true)
	if err != nil {
		return err
	}
	if required {
		switch {
		case c.ns() == "" && p.loose:
			// The dialect that writes no namespaces writes no ovf:required
			// either; its own elements hold nothing to obey.
			required = false
			p.notes.add(Warning, "required", c.off(), "<%s> is of no namespace and was ignored", c.qname())
		case p.opts.AllowRequired:
			p.notes.add(Fault, "required", c.off(), "<%s> of %q is required and not understood", c.qname(), clip(c.ns()))
		default:
			return formats.Unsupported(Name, c.off(), c.qname(), "a required section of %q", clip(c.ns()))
		}
	}
	e := c.elem()
	*list = append(*list, Section{c.local(), c.ns(), required, int64(e.start), int64(e.end)})
	return nil
}

// need is an attribute that identifies its element.
func (p *parser) need(c node, local string) (string, error) {
	s, ok := c.attr(local)
	if !ok || s == "" {
		return "", formats.Corrupt(Name, c.off(), c.qname()+"@"+local, "missing")
	}
	if len(s) > 4096 {
		return "", formats.Limit(Name, c.off(), c.qname()+"@"+local, "%d bytes", len(s))
	}
	return s, nil
}

func (p *parser) references(refs node) error {
	for c := range refs.all("File") {
		if len(p.env.Files) >= maxFiles {
			return formats.Limit(Name, c.off(), "References", "more than %d files", maxFiles)
		}
		f := File{Size: -1, off: c.off()}
		var err error
		if f.ID, err = p.need(c, "id"); err != nil {
			return err
		}
		if f.Href, err = p.need(c, "href"); err != nil {
			return err
		}
		if n, ok, err := c.number("size"); err != nil {
			return err
		} else if ok {
			f.Size = n
		}
		if n, ok, err := c.number("chunkSize"); err != nil {
			return err
		} else if ok {
			if n == 0 {
				return formats.Corrupt(Name, c.off(), "File@chunkSize", "0")
			}
			f.ChunkSize = n
		}
		if s := c.str("compression"); s != "" && s != "identity" {
			f.Compression = s
		}
		p.env.Files = append(p.env.Files, f)
	}
	return nil
}

func (p *parser) disks(sec node, element string, shared bool) error {
	for c := range sec.children() {
		if name := c.name(); name != element && !(shared && name == "Disk") {
			continue
		}
		if len(p.env.Disks) >= maxDisks {
			return formats.Limit(Name, c.off(), sec.qname(), "more than %d disks", maxDisks)
		}
		d, err := p.disk(c)
		if err != nil {
			return err
		}
		d.Shared = shared
		p.env.Disks = append(p.env.Disks, d)
	}
	return nil
}

func (p *parser) disk(c node) (Disk, error) {
	d := Disk{Capacity: -1, PopulatedSize: -1, unit: 1, off: c.off()}
	var err error
	if d.ID, err = p.need(c, "diskId"); err != nil {
		return d, err
	}
	d.FileRef, d.ParentRef, d.FormatURI = c.str("fileRef"), c.str("parentRef"), c.str("format")
	d.UUID, _ = c.attrNS(nsVBox, "uuid")
	if d.Format = diskFormat(c.str("volume-format")); d.Format == "" { // oVirt: says more than ovf:format there
		d.Format = diskFormat(d.FormatURI)
	}
	if d.Units = c.str("capacityAllocationUnits"); d.Units != "" {
		u, err := ParseUnits(d.Units)
		if err != nil || u.Base != "byte" {
			return d, formats.Corrupt(Name, c.off(), "Disk@capacityAllocationUnits", "%q", clip(d.Units))
		}
		d.unit = u.Factor
	}
	capacity, err := p.need(c, "capacity")
	if err != nil {
		return d, err
	}
	if key, ok := strings.CutPrefix(capacity, "${"); ok && strings.HasSuffix(key, "}") {
		d.CapacityProperty = strings.TrimSuffix(key, "}")
	} else {
		n, err := parseNumber(strings.TrimSpace(capacity))
		if err != nil {
			return d, formats.Corrupt(Name, c.off(), "Disk@capacity", "%q is not a number", clip(capacity))
		}
		var ok bool
		if d.Capacity, ok = (Units{"byte", d.unit}).Of(n); !ok {
			return d, formats.Limit(Name, c.off(), "Disk@capacity", "%d of %q", n, clip(d.Units))
		}
	}
	if n, ok, err := c.number("populatedSize"); err != nil {
		return d, err
	} else if ok {
		d.PopulatedSize = n // always bytes (section 9.1)
	}
	return d, nil
}

func (p *parser) networks(sec node) error {
	for c := range sec.all("Network") {
		if len(p.env.Networks) >= maxSystems {
			return formats.Limit(Name, c.off(), "NetworkSection", "more than %d networks", maxSystems)
		}
		n := Network{off: c.off()}
		var err error
		if n.Name, err = p.need(c, "name"); err != nil {
			return err
		}
		if n.Description, err = c.first("Description").message(); err != nil {
			return err
		}
		p.env.Networks = append(p.env.Networks, n)
	}
	return nil
}

func (p *parser) configurations(sec node) error {
	for c := range sec.all("Configuration") {
		if len(p.env.Configurations) >= maxSystems {
			return formats.Limit(Name, c.off(), "DeploymentOptionSection", "more than %d configurations", maxSystems)
		}
		cfg := Configuration{off: c.off()}
		var err error
		if cfg.ID, err = p.need(c, "id"); err != nil {
			return err
		}
		if cfg.Default, err = c.flag("default", false); err != nil {
			return err
		}
		if cfg.Label, err = c.first("Label").message(); err != nil {
			return err
		}
		if cfg.Description, err = c.first("Description").message(); err != nil {
			return err
		}
		p.env.Configurations = append(p.env.Configurations, cfg)
	}
	return nil
}

// encryption collects what an EncryptionSection says is encrypted, and how.
func (p *parser) encryption(sec node) {
	enc := &Encryption{}
	end := sec.elem().end
	for i := sec.i; int(i) < len(p.d.elems) && p.d.elems[i].start < end; i++ {
		c := node{p, i}
		switch c.local() {
		case "EncryptionMethod":
			if len(enc.Algorithms) < 64 {
				enc.Algorithms = append(enc.Algorithms, c.str("Algorithm"))
			}
		case "CipherReference", "DataReference":
			if uri := c.str("URI"); uri != "" && len(enc.References) < maxFiles {
				enc.References = append(enc.References, uri)
			}
		}
	}
	p.env.Encryption = enc
}

// strings reads a string bundle (section 10): messages inside the element, or
// in a file it refers to.
func (p *parser) strings(sec node) error {
	if len(p.env.Strings) >= maxBundles {
		return formats.Limit(Name, sec.off(), "Strings", "more than %d bundles", maxBundles)
	}
	b := Bundle{FileRef: sec.str("fileRef"), Messages: map[string]string{}}
	b.Lang, _ = sec.attrNS(nsXML, "lang")
	for c := range sec.all("Msg") {
		id, err := p.need(c, "msgid")
		if err != nil {
			return err
		}
		if b.Messages[id], err = c.text(); err != nil {
			return err
		}
	}
	p.env.Strings = append(p.env.Strings, b)
	return nil
}

// ParseBundle parses an external string bundle: a file whose root is Strings.
func ParseBundle(text []byte) (*Bundle, error) {
	if len(text) > maxBundle {
		return nil, formats.Limit(Name, -1, "Strings", "%d bytes, at most %d", len(text), maxBundle)
	}
	d, err := parseXML(text)
	if err != nil {
		return nil, err
	}
	p := &parser{d: d, env: &Envelope{}}
	root := node{p, 0}
	p.ns = root.ns()
	if root.local() != "Strings" || p.ns != nsEnvelope1 && p.ns != nsEnvelope2 {
		return nil, formats.Unknown(Name, root.off(), "", "root element %q", clip(root.qname()))
	}
	if err := p.strings(root); err != nil {
		return nil, err
	}
	return &p.env.Strings[0], nil
}
