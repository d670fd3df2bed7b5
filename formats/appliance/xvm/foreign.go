package xvm

import (
	"path"
	"strconv"
	"strings"

	"imgmaint/formats"
)

// describe reads an xvm.xml whose vocabulary is lost, by its structure: what
// is called a name is one, and every attribute or text that equals the name
// of a member refers to that member.
func (p *Package) describe(root *node) {
	d := &p.desc
	m := formats.Machine{ID: "1"}
	found := map[string]string{} // by kind of value
	note := func(kind, s string) {
		s = oneLine(s)
		if _, isMember := p.member(s); s != "" && found[kind] == "" && !isMember {
			found[kind] = s
		}
	}
	used := map[string]bool{}
	root.walk(0, func(n *node, depth int) {
		if len(n.nodes) == 0 {
			note(kindOf(n.name.Local), n.text)
		}
		for _, a := range n.attrs {
			// A name in the depth names a part.
			if k := kindOf(a.Name.Local); k != "name" || depth <= 1 {
				note(k, a.Value)
			}
		}
		values := []string{n.text}
		for _, a := range n.attrs {
			values = append(values, a.Value)
		}
		for _, v := range values {
			name, ok := p.member(v)
			if !ok || used[name] || reserved(name) {
				continue
			}
			used[name] = true
			disk := formats.PackageDisk{ID: name, Member: name}
			for _, a := range n.attrs {
				switch strings.ToLower(a.Name.Local) {
				case "device", "dev", "target":
					if a.Value != v {
						disk.Device = oneLine(a.Value)
					}
				}
			}
			d.Disks = append(d.Disks, disk)
			m.Disks = append(m.Disks, name)
		}
	})
	d.Name, d.Description = found["name"], found["description"]
	m.Name, m.Description, m.Version, m.Arch, m.OS = found["name"], found["description"], found["version"], found["arch"], found["os"]
	if n, err := strconv.Atoi(found["cpus"]); err == nil && n > 0 && n < 1<<16 {
		m.CPUs = n
	}
	if v := found["memory"]; v != "" {
		// The unit is lost with the vocabulary.
		m.Properties = append(m.Properties, formats.MachineProperty{Key: "memory", Value: v})
	}
	d.Machines = []formats.Machine{m}
	p.problem("xvm.xml has root element %q and no known vocabulary: read by its structure", clip(root.name.Local))
}

// kindOf says what an element or attribute of that name tells, "" for nothing
// known.
func kindOf(local string) string {
	switch strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(local)) {
	case "name", "title", "label", "vmname", "displayname":
		return "name"
	case "description", "desc", "summary", "comment", "notes":
		return "description"
	case "version", "release":
		return "version"
	case "arch", "architecture":
		return "arch"
	case "os", "ostype", "operatingsystem", "distribution", "distro":
		return "os"
	case "vcpus", "vcpu", "cpus", "cpu":
		return "cpus"
	case "memory", "mem", "ram":
		return "memory"
	}
	return ""
}

// member finds the member a value of a descriptor means: its name, or that
// with "./" or "/" before it.
func (p *Package) member(v string) (string, bool) {
	v = strings.TrimSpace(v)
	if v == "" || len(v) > maxToken {
		return "", false
	}
	for _, s := range []string{v, strings.TrimPrefix(v, "./"), strings.TrimPrefix(v, "/")} {
		if _, ok := p.archive.Member(s); ok {
			return s, true
		}
	}
	return "", false
}

// oneLine is a value of a stranger as one short line.
func oneLine(s string) string { return clip(strings.Join(strings.Fields(s), " ")) }

func clip(s string) string {
	if len(s) > maxToken {
		s = s[:maxToken]
	}
	return strings.Map(func(c rune) rune {
		if c < 0x20 || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, ""))
}

// domain reads a libvirt domain (libvirt.org, "Domain XML format"), which
// XVM 2 uses.
func (p *Package) domain(root *node) error {
	if root.name.Local != "domain" {
		return formats.Unknown(Name2, root.off, "description.xml", "root element %.100q", root.name.Local)
	}
	d := &p.desc
	m := formats.Machine{ID: oneLine(root.child("uuid").text), Name: oneLine(root.child("name").text)}
	if m.ID == "" {
		m.ID = "1"
	}
	d.Name = m.Name
	if t := oneLine(root.child("title").text); t != "" {
		d.Name = t
	}
	m.Description = clipText(root.child("description").text)
	d.Description = m.Description
	os := root.child("os")
	m.Arch = oneLine(os.child("type").attr("arch"))
	m.OS = oneLine(os.child("type").text)
	p.Boot = oneLine(os.child("boot").attr("dev"))
	for _, f := range root.child("features").nodes {
		if len(p.Features) < maxProblems {
			p.Features = append(p.Features, oneLine(f.name.Local))
		}
	}
	if n, err := strconv.Atoi(strings.TrimSpace(root.child("vcpu").text)); err == nil && n > 0 && n < 1<<16 {
		m.CPUs = n
	}
	mem := root.child("memory")
	if v, ok := scaled(strings.TrimSpace(mem.text), mem.attr("unit")); ok {
		m.Memory = v
	} else if mem.text != "" {
		p.problem("memory of %q %q", clip(mem.text), clip(mem.attr("unit")))
	}
	ids := map[string]bool{}
	for _, n := range root.child("devices").nodes {
		switch n.name.Local {
		case "disk":
			disk, ok := p.domainDisk(n)
			if !ok {
				continue
			}
			if len(d.Disks) == maxDisks {
				return formats.Limit(Name2, n.off, "disk", "more than %d", maxDisks)
			}
			if ids[disk.ID] {
				p.problem("disk %q is there twice", disk.ID)
				continue
			}
			ids[disk.ID] = true
			d.Disks = append(d.Disks, disk)
			m.Disks = append(m.Disks, disk.ID)
		case "interface":
			src := n.child("source")
			for _, k := range []string{"network", "bridge", "dev"} {
				if v := oneLine(src.attr(k)); v != "" && len(m.Networks) < maxProperties {
					m.Networks = append(m.Networks, v)
					break
				}
			}
		}
	}
	d.Machines = []formats.Machine{m}
	return nil
}

// domainDisk reads a <disk>. The name of its file, which may be a path on the
// producer's host, is reduced to its last part and looked up among the
// members; it is never opened.
func (p *Package) domainDisk(n *node) (formats.PackageDisk, bool) {
	k := formats.PackageDisk{Device: oneLine(n.child("target").attr("dev")), Role: "disk", Format: oneLine(n.child("driver").attr("type"))}
	src := strings.TrimSpace(n.child("source").attr("file"))
	if t := n.attr("type"); t != "" && t != "file" {
		p.problem("disk %q is of type %q: not in the package", k.Device, clip(t))
		return k, false
	}
	if src == "" {
		if dev := n.attr("device"); dev == "" || dev == "disk" {
			p.problem("disk %q has no source", k.Device)
		}
		return k, false
	}
	base := path.Base(src)
	name := ""
	for _, s := range []string{strings.TrimPrefix(src, "./"), base, base + ".gz"} {
		if _, ok := p.archive.Member(s); ok && !reserved(s) && !isSnapshot(s) {
			name = s
			break
		}
	}
	if name == "" {
		p.problem("disk %q is %q, which is no member", k.Device, clip(src))
		return k, false
	}
	if name != src {
		p.problem("disk %q is %q, taken for the member %q", k.Device, clip(src), name)
	}
	k.ID, k.Member = name, name
	return k, true
}

// isSnapshot reports whether a member is a snapshot's domain, as Archipel
// packs them: snapshot-N.xml.
func isSnapshot(name string) bool {
	s, ok := strings.CutPrefix(name, "snapshot-")
	s, ok2 := strings.CutSuffix(s, ".xml")
	if !ok || !ok2 || s == "" || len(s) > 18 {
		return false
	}
	return strings.Trim(s, "0123456789") == ""
}

// scaled is a number with libvirt's unit in bytes; without one it is KiB.
func scaled(s, unit string) (int64, bool) {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 {
		return 0, false
	}
	mul := int64(1)
	switch strings.ToLower(unit) {
	case "b", "bytes":
	case "", "k", "kib":
		mul = 1 << 10
	case "kb":
		mul = 1000
	case "m", "mib":
		mul = 1 << 20
	case "mb":
		mul = 1000_000
	case "g", "gib":
		mul = 1 << 30
	case "gb":
		mul = 1000_000_000
	case "t", "tib":
		mul = 1 << 40
	case "tb":
		mul = 1000_000_000_000
	default:
		return 0, false
	}
	if v > maxVirtual/mul {
		return 0, false
	}
	return v * mul, true
}

// clipText is a longer text of a stranger, lines kept.
func clipText(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 64<<10 {
		s = s[:64<<10]
	}
	return strings.Map(func(c rune) rune {
		if c < 0x20 && c != '\n' && c != '\t' || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(s, ""))
}
