package ovf

import (
	"fmt"
	"slices"
	"strings"
)

// A ProductChange is what SetProduct writes; nil leaves a text as it is.
type ProductChange struct {
	Product, Vendor, Version, FullVersion *string
}

// productOrder is the order of the schema (DSP8023 ProductSection_Type).
var productOrder = []string{"Info", "Product", "Vendor", "Version", "FullVersion", "ProductUrl", "VendorUrl", "AppUrl", "Icon", "Category", "Property"}

// findSystem finds a system after pending changes are made.
func (ed *Editor) findSystem(id string) (*System, error) {
	if err := ed.commit(nil); err != nil {
		return nil, err
	}
	s := ed.env.System(id)
	if s == nil {
		return nil, notFound("system", id)
	}
	return s, nil
}

// SetProduct changes texts of the ProductSection with that class and instance
// in a system; "" as the system's id is the content of the envelope. A
// section that does not exist is added.
func (ed *Editor) SetProduct(system, class, instance string, c ProductChange) error {
	s, err := ed.findSystem(system)
	if err != nil {
		return err
	}
	fields := []struct {
		name  string
		value *string
	}{{"Product", c.Product}, {"Vendor", c.Vendor}, {"Version", c.Version}, {"FullVersion", c.FullVersion}}
	for _, f := range fields {
		if f.value != nil {
			if err := checkText("ProductSection/"+f.name, *f.value); err != nil {
				return err
			}
		}
	}
	i := slices.IndexFunc(s.Products, func(p Product) bool { return p.Class == class && p.Instance == instance })
	if i < 0 {
		if err := checkTexts("ProductSection@class", class, "ProductSection@instance", instance); err != nil {
			return err
		}
		n := node{ed.env.p, s.node}
		m := n.names()
		open := "<" + m.elem + "ProductSection" + m.decls
		if class != "" {
			open += fmt.Sprintf(` %sclass="%s"`, m.attr, escapeAttr(class))
		}
		if instance != "" {
			open += fmt.Sprintf(` %sinstance="%s"`, m.attr, escapeAttr(instance))
		}
		lines := []string{open + ">", "\t<" + m.elem + "Info>Information about the installed software</" + m.elem + "Info>"}
		for _, f := range fields {
			if f.value != nil {
				lines = append(lines, "\t<"+m.elem+f.name+">"+escapeText(*f.value)+"</"+m.elem+f.name+">")
			}
		}
		return ed.commit([]patch{insert(n, n.lastSection(), append(lines, "</"+m.elem+"ProductSection>"))})
	}
	n := node{ed.env.p, s.Products[i].node}
	var ps []patch
	for _, f := range fields {
		if f.value == nil {
			continue
		}
		if old := n.first(f.name); !old.isZero() {
			if t, err := old.text(); err != nil {
				return err
			} else if t != *f.value {
				ps = append(ps, old.setText(*f.value))
			}
			continue
		}
		m := n.names()
		before := productOrder[:slices.Index(productOrder, f.name)]
		prev := n.lastChild(func(x node) bool { return slices.Contains(before, x.name()) })
		ps = append(ps, insert(n, prev, []string{"<" + m.elem + f.name + ">" + escapeText(*f.value) + "</" + m.elem + f.name + ">"}))
	}
	return ed.commit(mergeInserts(ps))
}

// mergeInserts joins insertions at one place, and expansions of one
// empty-element tag, into one patch each.
func mergeInserts(ps []patch) []patch {
	var out []patch
	for _, p := range ps {
		i := slices.IndexFunc(out, func(o patch) bool { return o.lo == p.lo && o.hi == p.hi })
		switch {
		case i < 0:
			out = append(out, p)
		case p.lo == p.hi:
			out[i].s += p.s
		default: // ">" children newline indent "</name>": keep one frame
			tail := out[i].s[strings.LastIndex(out[i].s, "</"):]
			cut := strings.LastIndexByte(strings.TrimSuffix(out[i].s, tail), '\n')
			if cut > 0 && out[i].s[cut-1] == '\r' {
				cut--
			}
			out[i].s = out[i].s[:cut] + strings.TrimPrefix(p.s, ">")
		}
	}
	return out
}

// lastSection is the last child of a system that is not a system: where a new
// section goes after.
func (n node) lastSection() node {
	return n.lastChild(func(c node) bool {
		return c.name() != "VirtualSystem" && c.name() != "VirtualSystemCollection"
	})
}

// SetProperty changes the default value of a property, which key names as the
// guest sees it (class.key.instance), in a system. With a configuration the
// value is that of the configuration alone.
func (ed *Editor) SetProperty(system, key, value, configuration string) error {
	s, err := ed.findSystem(system)
	if err != nil {
		return err
	}
	if err := checkTexts("Property@value", value, "Property@configuration", configuration); err != nil {
		return err
	}
	var prop *Property
	for i := range s.Products {
		for j := range s.Products[i].Properties {
			if p := &s.Products[i].Properties[j]; s.Products[i].FullKey(p.Key) == key {
				if prop != nil {
					return fmt.Errorf("%s: two of property %q", Name, clip(key))
				}
				prop = p
			}
		}
	}
	if prop == nil {
		return notFound("property", key)
	}
	n := node{ed.env.p, prop.node}
	if configuration == "" {
		if prop.hasValue && prop.Value == value {
			return nil
		}
		return ed.put([]patch{n.setAttr("value", value)})
	}
	if !slices.ContainsFunc(ed.env.Configurations, func(c Configuration) bool { return c.ID == configuration }) {
		return notFound("configuration", configuration)
	}
	for v := range n.all("Value") {
		if v.str("configuration") == configuration {
			return ed.put(ed.change(v, "value", value, false))
		}
	}
	m := n.names()
	line := fmt.Sprintf(`<%sValue%s %sconfiguration="%s" %svalue="%s"/>`, m.elem, m.decls, m.attr, escapeAttr(configuration), m.attr, escapeAttr(value))
	return ed.commit([]patch{insert(n, n.lastChild(func(node) bool { return true }), []string{line})})
}

// SetOS changes the OperatingSystemSection of a system: id, version (""
// removes it) and description. Vendors' attributes stay. A section that does
// not exist is added.
func (ed *Editor) SetOS(system string, id int, version, description string) error {
	s, err := ed.findSystem(system)
	if err != nil {
		return err
	}
	if err := checkTexts("OperatingSystemSection@version", version, "OperatingSystemSection/Description", description); err != nil {
		return err
	}
	if id < 0 || id > 0xffff {
		return fmt.Errorf("%s: operating system id %d", Name, id)
	}
	n := node{ed.env.p, s.node}
	sec := n.first("OperatingSystemSection")
	if sec.isZero() {
		m := n.names()
		open := fmt.Sprintf(`<%sOperatingSystemSection%s %sid="%d"`, m.elem, m.decls, m.attr, id)
		if version != "" {
			open += fmt.Sprintf(` %sversion="%s"`, m.attr, escapeAttr(version))
		}
		lines := []string{open + ">", "\t<" + m.elem + "Info>The installed operating system</" + m.elem + "Info>"}
		if description != "" {
			lines = append(lines, "\t<"+m.elem+"Description>"+escapeText(description)+"</"+m.elem+"Description>")
		}
		return ed.commit([]patch{insert(n, n.lastSection(), append(lines, "</"+m.elem+"OperatingSystemSection>"))})
	}
	ps := ed.change(sec, "id", fmt.Sprint(id), s.OS != nil && s.OS.ID == id)
	ps = append(ps, ed.change(sec, "version", version, false)...)
	old := sec.first("Description")
	switch {
	case description == "" || s.OS != nil && s.OS.Description.Value == description:
	case !old.isZero():
		ps = append(ps, old.setText(description))
	default:
		m := sec.names()
		line := "<" + m.elem + "Description>" + escapeText(description) + "</" + m.elem + "Description>"
		ps = append(ps, insert(sec, sec.lastChild(func(c node) bool { return c.name() == "Info" }), []string{line}))
	}
	return ed.commit(ps)
}

// SetInventory writes the inventory section of a system, in place of the one
// that is there or at the end of its sections. A nil inventory removes it.
func (ed *Editor) SetInventory(system string, inv *Inventory) error {
	s, err := ed.findSystem(system)
	if err != nil {
		return err
	}
	n := node{ed.env.p, s.node}
	var old node
	for c := range n.children() {
		if c.ns() == NSInventory && c.local() == "InventorySection" {
			old = c
			break
		}
	}
	if inv == nil {
		if old.isZero() {
			return nil
		}
		return ed.commit([]patch{old.drop()})
	}
	prev := n.lastSection()
	lines, err := inv.lines(n)
	if err != nil {
		return err
	}
	if old.isZero() {
		return ed.commit([]patch{insert(n, prev, lines)})
	}
	// The first line goes where the old element began, the rest as insert
	// would put it.
	p := insert(n, old, lines)
	indent, _ := old.indent()
	first := ed.env.p.d.newline() + indent
	return ed.commit([]patch{{int(old.elem().start), int(old.elem().end), strings.TrimLeft(strings.TrimPrefix(p.s, first), " \t\r\n")}})
}
