package ovf

import (
	"fmt"
	"slices"
	"strings"

	"imgmaint/formats"
)

// CreateOptions changes what New writes. Nil means the defaults.
type CreateOptions struct {
	// Hardware is the VirtualSystemType, "vmx-13" by default: the oldest that
	// every supported importer takes.
	Hardware string
	// Populated is the number of bytes in use of a disk, by id.
	Populated map[string]int64
	// Inventories are the inventory sections, by machine id.
	Inventories map[string]*Inventory
}

const (
	defaultHardware = "vmx-13"
	// disksPerSCSI is the number of disks on one controller: addresses 0 to
	// 15 without 7, which is the controller's own.
	disksPerSCSI = 15
	maxSCSI      = 4 // controllers a virtual machine can have
	maxNICs      = 10
)

// New writes a descriptor (DSP0243 1.1) for what d describes: one
// VirtualSystem a machine, in a VirtualSystemCollection when there are
// several; machines without disks of their own get all disks when there is
// only one machine. References holds the members of the disks first, then the
// other members except a descriptor, a manifest and signatures. The bytes
// depend on the arguments alone.
func New(d *formats.Descriptor, opts *CreateOptions) ([]byte, error) {
	c := &creator{d: d, files: map[string]string{}}
	if opts != nil {
		c.opts = *opts
	}
	if c.opts.Hardware == "" {
		c.opts.Hardware = defaultHardware
	}
	if err := c.envelope(); err != nil {
		return nil, err
	}
	text := []byte(c.b.String())
	env, err := Parse(text, nil)
	if err != nil {
		return nil, err
	}
	ed := NewEditor(env)
	for _, m := range c.machines {
		if inv := c.opts.Inventories[m.ID]; inv != nil {
			if err := ed.SetInventory(m.ID, inv); err != nil {
				return nil, err
			}
		}
	}
	if env, err = ed.Envelope(); err != nil {
		return nil, err
	}
	for _, f := range env.Validate(nil) {
		if f.Level == Fault {
			return nil, fmt.Errorf("%s: the new descriptor breaks a rule: %v", Name, f)
		}
	}
	return env.Bytes(), nil
}

type creator struct {
	d        *formats.Descriptor
	opts     CreateOptions
	machines []formats.Machine
	files    map[string]string // member -> file id
	b        strings.Builder
	depth    int
	err      error
}

// esc escapes text for either place, and keeps the first error.
func (c *creator) esc(s string) string {
	if err := checkText("descriptor", s); err != nil && c.err == nil {
		c.err = err
	}
	return escapeAttr(s)
}

// text escapes character data; line ends stay as they are.
func (c *creator) text(s string) string {
	if err := checkText("descriptor", s); err != nil && c.err == nil {
		c.err = err
	}
	return escapeText(s)
}

func (c *creator) line(format string, args ...any) {
	c.b.WriteString(strings.Repeat("  ", c.depth))
	fmt.Fprintf(&c.b, format, args...)
	c.b.WriteByte('\n')
}

func (c *creator) open(format string, args ...any) {
	c.line(format, args...)
	c.depth++
}

func (c *creator) close(name string) {
	c.depth--
	c.line("</%s>", name)
}

// leaf writes <name>s</name>, and nothing when s is empty.
func (c *creator) leaf(name, s string) {
	if s != "" {
		c.line("<%s>%s</%s>", name, c.text(s), name)
	}
}

func (c *creator) envelope() error {
	c.machines = slices.Clone(c.d.Machines)
	if len(c.machines) == 0 {
		c.machines = []formats.Machine{{ID: "vm", Name: c.d.Name, Description: c.d.Description}}
	}
	if len(c.machines) == 1 && len(c.machines[0].Disks) == 0 {
		for _, d := range c.d.Disks {
			c.machines[0].Disks = append(c.machines[0].Disks, d.ID)
		}
	}
	c.b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>` + "\n")
	c.open(`<Envelope xmlns="%s" xmlns:ovf="%s" xmlns:rasd="%s" xmlns:vssd="%s">`, nsEnvelope1, nsEnvelope1, nsRASD, nsVSSD)
	if err := c.references(); err != nil {
		return err
	}
	if err := c.disks(); err != nil {
		return err
	}
	c.networks()
	if len(c.machines) > 1 {
		name := c.d.Name
		if name == "" {
			name = "machines"
		}
		c.open(`<VirtualSystemCollection ovf:id="%s">`, c.esc(name))
		c.leaf("Info", "A collection of virtual machines")
		c.leaf("Name", c.d.Name)
		if c.d.Description != "" {
			c.annotation(c.d.Description)
		}
	}
	for i := range c.machines {
		if err := c.machine(&c.machines[i]); err != nil {
			return err
		}
	}
	if len(c.machines) > 1 {
		c.close("VirtualSystemCollection")
	}
	c.close("Envelope")
	return c.err
}

// carried reports whether a member is of the package's content, not of its
// frame.
func carried(name string) bool {
	l := strings.ToLower(name)
	for _, s := range []string{".ovf", ".mf", ".cert"} {
		if strings.HasSuffix(l, s) {
			return false
		}
	}
	switch l {
	case "xvm.xml", "description.xml", "manifest.txt", "manifest.sha256", "manifest.sha256.asc", "mf-signature.asc", "signature.asc":
		return false
	}
	return true
}

func (c *creator) references() error {
	sizes := map[string]int64{}
	for _, m := range c.d.Members {
		sizes[m.Name] = m.Size
	}
	type ref struct {
		id, name, compression string
		chunk                 int64
	}
	var refs []ref
	chunked := map[string]bool{} // members that are chunks of a disk
	for _, d := range c.d.Disks {
		if d.Member == "" || c.files[d.Member] != "" {
			continue
		}
		id := fmt.Sprintf("file%d", len(refs)+1)
		c.files[d.Member] = id
		r := ref{id: id, name: d.Member, chunk: d.ChunkSize}
		switch d.Compression {
		case "", "none":
		case "gzip":
			r.compression = "gzip"
		default:
			return formats.Unsupported(Name, -1, "File@compression", "%q", d.Compression)
		}
		if d.ChunkSize > 0 {
			total := int64(0)
			for i := 0; ; i++ {
				n, ok := sizes[ChunkName(d.Member, i)]
				if !ok {
					break
				}
				chunked[ChunkName(d.Member, i)] = true
				total += n
			}
			sizes[d.Member] = total
		}
		refs = append(refs, r)
	}
	for _, m := range c.d.Members {
		if c.files[m.Name] == "" && !chunked[m.Name] && carried(m.Name) {
			id := fmt.Sprintf("file%d", len(refs)+1)
			c.files[m.Name] = id
			refs = append(refs, ref{id: id, name: m.Name})
		}
	}
	if len(refs) == 0 {
		c.line("<References/>")
		return nil
	}
	c.open("<References>")
	for _, r := range refs {
		if literal, _ := HrefName(hrefOf(r.name)); literal == "" {
			return fmt.Errorf("%s: member %q cannot be referred to", Name, r.name)
		}
		attrs := fmt.Sprintf(`ovf:href="%s" ovf:id="%s"`, c.esc(hrefOf(r.name)), r.id)
		if n, ok := sizes[r.name]; ok && n >= 0 {
			attrs += fmt.Sprintf(` ovf:size="%d"`, n)
		}
		if r.compression != "" {
			attrs += fmt.Sprintf(` ovf:compression="%s"`, r.compression)
		}
		if r.chunk > 0 {
			attrs += fmt.Sprintf(` ovf:chunkSize="%d"`, r.chunk)
		}
		c.line("<File %s/>", attrs)
	}
	c.close("References")
	return nil
}

// hrefOf is the URI reference of a member: percent signs and what would read
// as a scheme are escaped, everything else stands, as importers compare.
func hrefOf(name string) string {
	name = strings.ReplaceAll(name, "%", "%25")
	if first, _, _ := strings.Cut(name, "/"); strings.Contains(first, ":") {
		name = strings.ReplaceAll(name, ":", "%3A")
	}
	return name
}

func (c *creator) disks() error {
	if len(c.d.Disks) == 0 {
		return nil
	}
	c.open("<DiskSection>")
	c.leaf("Info", "Virtual disks")
	for _, d := range c.d.Disks {
		if d.ID == "" || d.Size <= 0 {
			return fmt.Errorf("%s: disk %q without id or virtual size", Name, d.ID)
		}
		uri := FormatURI(d.Format)
		if uri == "" {
			if d.Member != "" {
				return formats.Unsupported(Name, -1, "Disk@format", "%q has no format URI", d.Format)
			}
			uri = FormatURI("vmdk") // what an empty disk is made as
		}
		attrs := fmt.Sprintf(`ovf:capacity="%d" ovf:capacityAllocationUnits="byte" ovf:diskId="%s"`, d.Size, c.esc(d.ID))
		if d.Member != "" {
			attrs += fmt.Sprintf(` ovf:fileRef="%s"`, c.files[d.Member])
		}
		attrs += fmt.Sprintf(` ovf:format="%s"`, uri)
		if n, ok := c.opts.Populated[d.ID]; ok {
			attrs += fmt.Sprintf(` ovf:populatedSize="%d"`, n)
		}
		if d.Parent != "" {
			attrs += fmt.Sprintf(` ovf:parentRef="%s"`, c.esc(d.Parent))
		}
		c.line("<Disk %s/>", attrs)
	}
	c.close("DiskSection")
	return nil
}

func (c *creator) networks() {
	var names []string
	for _, m := range c.machines {
		for _, n := range m.Networks {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	if len(names) == 0 {
		return
	}
	c.open("<NetworkSection>")
	c.leaf("Info", "Logical networks")
	for _, n := range names {
		c.open(`<Network ovf:name="%s">`, c.esc(n))
		c.leaf("Description", "The "+n+" network")
		c.close("Network")
	}
	c.close("NetworkSection")
}

func (c *creator) annotation(s string) {
	c.open("<AnnotationSection>")
	c.leaf("Info", "A description of this system")
	c.leaf("Annotation", s)
	c.close("AnnotationSection")
}

func (c *creator) machine(m *formats.Machine) error {
	if m.ID == "" {
		return fmt.Errorf("%s: machine %q without id", Name, m.Name)
	}
	c.open(`<VirtualSystem ovf:id="%s">`, c.esc(m.ID))
	c.leaf("Info", "A virtual machine")
	c.leaf("Name", m.Name)
	c.open(`<OperatingSystemSection ovf:id="%d">`, OSType(m.OS, m.Arch))
	c.leaf("Info", "The installed operating system")
	c.leaf("Description", m.OS)
	c.close("OperatingSystemSection")
	if err := c.hardware(m); err != nil {
		return err
	}
	if m.Description != "" {
		c.annotation(m.Description)
	}
	c.products(m)
	for _, l := range m.Licences {
		c.open("<EulaSection>")
		c.leaf("Info", "Licence agreement")
		c.line("<License>%s</License>", c.text(l))
		c.close("EulaSection")
	}
	c.close("VirtualSystem")
	return c.err
}

// rasd is an Item to write; fields in the order of the schema.
type rasd struct {
	address, addressOnParent, units, automatic, connection, description, name, host string
	id                                                                              int
	parent, subType                                                                 string
	kind                                                                            int
	quantity                                                                        string
}

func (c *creator) item(r rasd) {
	c.open("<Item>")
	for _, f := range []struct{ name, value string }{
		{"Address", r.address}, {"AddressOnParent", r.addressOnParent}, {"AllocationUnits", r.units},
		{"AutomaticAllocation", r.automatic}, {"Connection", r.connection}, {"Description", r.description},
		{"ElementName", r.name}, {"HostResource", r.host}, {"InstanceID", fmt.Sprint(r.id)}, {"Parent", r.parent},
		{"ResourceSubType", r.subType}, {"ResourceType", fmt.Sprint(r.kind)}, {"VirtualQuantity", r.quantity},
	} {
		c.leaf("rasd:"+f.name, f.value)
	}
	c.close("Item")
}

func (c *creator) hardware(m *formats.Machine) error {
	if len(m.Disks) > maxSCSI*disksPerSCSI || len(m.Networks) > maxNICs {
		return formats.Limit(Name, -1, "VirtualHardwareSection", "%d disks and %d networks, at most %d and %d",
			len(m.Disks), len(m.Networks), maxSCSI*disksPerSCSI, maxNICs)
	}
	if len(m.Properties) > 0 {
		c.open(`<VirtualHardwareSection ovf:transport="iso com.vmware.guestInfo">`)
	} else {
		c.open("<VirtualHardwareSection>")
	}
	c.leaf("Info", "Virtual hardware")
	c.open("<System>")
	c.leaf("vssd:ElementName", "Virtual Hardware Family")
	c.leaf("vssd:InstanceID", "0")
	c.leaf("vssd:VirtualSystemIdentifier", m.ID)
	c.leaf("vssd:VirtualSystemType", c.opts.Hardware)
	c.close("System")
	cpus, memory := max(m.CPUs, 1), m.Memory
	if memory <= 0 {
		memory = 1 << 30
	}
	megabytes := (memory + 1<<20 - 1) >> 20
	c.item(rasd{units: "hertz * 10^6", description: "Number of virtual CPUs", name: fmt.Sprintf("%d virtual CPU(s)", cpus),
		id: 1, kind: TypeProcessor, quantity: fmt.Sprint(cpus)})
	c.item(rasd{units: "byte * 2^20", description: "Memory size", name: fmt.Sprintf("%d MB of memory", megabytes),
		id: 2, kind: TypeMemory, quantity: fmt.Sprint(megabytes)})
	id := 3
	var controller int
	for i, disk := range m.Disks {
		if i%disksPerSCSI == 0 {
			controller = id
			c.item(rasd{address: fmt.Sprint(i / disksPerSCSI), description: "SCSI controller", name: fmt.Sprintf("SCSI controller %d", i/disksPerSCSI),
				id: id, subType: "lsilogic", kind: TypeSCSI})
			id++
		}
		unit := i % disksPerSCSI
		if unit >= 7 {
			unit++
		}
		c.item(rasd{addressOnParent: fmt.Sprint(unit), name: fmt.Sprintf("Hard disk %d", i+1), host: "ovf:/disk/" + disk,
			id: id, parent: fmt.Sprint(controller), kind: TypeDisk})
		id++
	}
	for i, n := range m.Networks {
		c.item(rasd{addressOnParent: fmt.Sprint(i), automatic: "true", connection: n, description: "Network adapter",
			name: fmt.Sprintf("Network adapter %d", i+1), id: id, subType: "VmxNet3", kind: TypeEthernet})
		id++
	}
	c.close("VirtualHardwareSection")
	return nil
}

// products writes the product of the machine with the properties that have
// its class, and one ProductSection for each further class. The class is what
// stands before the last period of a key: then the guest sees the same key.
func (c *creator) products(m *formats.Machine) {
	classOf := func(key string) (class, rest string) {
		if i := strings.LastIndexByte(key, '.'); i > 0 && i < len(key)-1 {
			return key[:i], key[i+1:]
		}
		return "", key
	}
	var classes []string
	if m.Product != "" || m.Vendor != "" || m.Version != "" || m.FullVersion != "" {
		classes = append(classes, "")
	}
	for _, p := range m.Properties {
		if class, _ := classOf(p.Key); !slices.Contains(classes, class) {
			classes = append(classes, class)
		}
	}
	for i, class := range classes {
		attr := ""
		if class != "" {
			attr = fmt.Sprintf(` ovf:class="%s"`, c.esc(class))
		}
		c.open("<ProductSection%s>", attr)
		c.leaf("Info", "Information about the installed software")
		if i == 0 {
			c.leaf("Product", m.Product)
			c.leaf("Vendor", m.Vendor)
			c.leaf("Version", m.Version)
			c.leaf("FullVersion", m.FullVersion)
		}
		for _, p := range m.Properties {
			if have, key := classOf(p.Key); have == class {
				c.property(p, key)
			}
		}
		c.close("ProductSection")
	}
}

func (c *creator) property(p formats.MachineProperty, key string) {
	kind := p.Type
	if kind == "" {
		kind = "string"
	}
	attrs := fmt.Sprintf(`ovf:key="%s" ovf:type="%s"`, c.esc(key), c.esc(kind))
	if p.Value != "" {
		attrs += fmt.Sprintf(` ovf:value="%s"`, c.esc(p.Value))
	}
	if p.Settable {
		attrs += ` ovf:userConfigurable="true"`
	}
	if p.Password {
		attrs += ` ovf:password="true"`
	}
	if p.Label == "" && p.Description == "" {
		c.line("<Property %s/>", attrs)
		return
	}
	c.open("<Property %s>", attrs)
	c.leaf("Label", p.Label)
	c.leaf("Description", p.Description)
	c.close("Property")
}
