package inspect

import (
	"encoding/binary"
	"errors"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// maxUsers bounds the users that are listed.
const maxUsers = 1000

func collectHostname(c *collection) error {
	for line := range strings.SplitSeq(string(c.small("etc/hostname")), "\n") {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			c.it.Hostname = value(line)
			return nil
		}
	}
	// Older Red Hat systems.
	c.it.Hostname = parseAssignments(c.small("etc/sysconfig/network"))["HOSTNAME"]
	return nil
}

// collectMachineID says what machine-id(5) will do at the next boot: a golden
// image should have none of its own.
func collectMachineID(c *collection) error {
	b, err := c.Read("etc/machine-id", maxSmall)
	switch id := strings.TrimSpace(string(b)); {
	case absent(err):
		c.it.MachineID = "absent"
	case err != nil:
		return err
	case id == "":
		c.it.MachineID = "empty"
	case id == "uninitialized":
		c.it.MachineID = "uninitialized"
	default:
		c.it.MachineID = "set"
	}
	return nil
}

func collectTimezone(c *collection) error {
	// The link is what the system uses; the file is what Debian's tools show.
	if target, err := c.ReadLink("etc/localtime"); err == nil {
		if _, zone, ok := strings.Cut(target, "zoneinfo/"); ok {
			c.it.Timezone = value(zone)
			return nil
		}
	}
	c.it.Timezone = firstLine(c.small("etc/timezone"))
	return nil
}

func collectLocale(c *collection) error {
	for _, name := range []string{"etc/locale.conf", "etc/default/locale", "etc/sysconfig/i18n"} {
		if l := parseAssignments(c.small(name))["LANG"]; l != "" {
			c.it.Locale = l
			return nil
		}
	}
	return nil
}

// collectUsers lists root when it can log in with a password, and people.
func collectUsers(c *collection) error {
	for line := range strings.SplitSeq(string(c.small("etc/passwd")), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 7 {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		shell := path.Base(f[6])
		if err != nil || uid < 1000 || uid >= 65534 || shell == "nologin" || shell == "false" {
			continue
		}
		if len(c.it.Users) == maxUsers {
			return errors.New("more users than are listed")
		}
		c.it.Users = append(c.it.Users, value(f[0]))
	}
	return nil
}

func collectInit(c *collection) error {
	p, err := c.Resolve("sbin/init")
	if err != nil {
		if absent(err) {
			return nil // a container, or a system without one
		}
		return err
	}
	switch base := path.Base(p); {
	case base == "systemd":
		c.it.Init = "systemd"
	case base == "busybox":
		c.it.Init = "busybox"
		if c.exists("sbin/openrc") {
			c.it.Init = "openrc"
		}
	case strings.HasPrefix(base, "runit"):
		c.it.Init = "runit"
	case strings.HasPrefix(base, "openrc"):
		c.it.Init = "openrc"
	case strings.HasPrefix(base, "dinit"):
		c.it.Init = "dinit"
	case c.exists("etc/init/rc-sysinit.conf"):
		c.it.Init = "upstart"
	case c.exists("sbin/openrc"):
		c.it.Init = "openrc"
	case c.exists("etc/inittab"):
		c.it.Init = "sysvinit"
	default:
		c.it.Init = value("/" + p)
	}
	return nil
}

// collectArchitecture asks dpkg, and else looks at a program.
func collectArchitecture(c *collection) error {
	if a := firstLine(c.small("var/lib/dpkg/arch")); a != "" {
		c.it.Architecture = a
		return nil
	}
	for _, p := range c.it.Packages {
		if (p.Name == "dpkg" || p.Name == "base-files" || p.Name == "libc6" || p.Name == "musl") && p.Architecture != "all" && p.Architecture != "" {
			c.it.Architecture = dpkgArch(p.Architecture)
			return nil
		}
	}
	for _, name := range []string{"bin/sh", "usr/bin/env", "sbin/init", "usr/lib/systemd/systemd", "bin/busybox", "lib/ld-musl-x86_64.so.1"} {
		f, err := c.openRegular(name)
		if err != nil {
			c.failed(name, err)
			continue
		}
		b := make([]byte, 64)
		n, err := io.ReadFull(f, b)
		f.Close()
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			c.failed(name, err)
		}
		if a := elfArch(b[:n]); a != "" {
			c.it.Architecture = a
			return nil
		}
	}
	if len(c.it.Packages) > 0 && c.it.Packages[0].Architecture != "" && c.it.Packages[0].Architecture != "all" {
		c.it.Architecture = dpkgArch(c.it.Packages[0].Architecture)
		return nil
	}
	return errors.New("could not be told")
}

// dpkgArch names an architecture as dpkg does.
func dpkgArch(a string) string {
	switch a {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "x86", "i486", "i586", "i686":
		return "i386"
	case "ppc64le":
		return "ppc64el"
	case "armv7", "armv7l":
		return "armhf"
	case "loongarch64":
		return "loong64"
	}
	return a
}

// elfArch is the architecture of an ELF program by its header; empty for
// anything else.
func elfArch(b []byte) string {
	if len(b) < 40 || string(b[:4]) != "\x7fELF" {
		return ""
	}
	var bo binary.ByteOrder = binary.LittleEndian
	little := b[5] == 1
	if !little {
		bo = binary.BigEndian
	}
	wide := b[4] == 2
	switch machine := bo.Uint16(b[18:]); { // e_machine
	case machine == 62 && wide:
		return "amd64"
	case machine == 62:
		return "x32"
	case machine == 3:
		return "i386"
	case machine == 183:
		return "arm64"
	case machine == 40:
		if bo.Uint32(b[36:])&0x400 != 0 { // e_flags: hard float
			return "armhf"
		}
		return "armel"
	case machine == 243 && wide:
		return "riscv64"
	case machine == 21 && little:
		return "ppc64el"
	case machine == 21:
		return "ppc64"
	case machine == 20:
		return "powerpc"
	case machine == 22:
		return "s390x"
	case machine == 258:
		return "loong64"
	case machine == 8 && little && wide:
		return "mips64el"
	case machine == 8 && little:
		return "mipsel"
	case machine == 43:
		return "sparc64"
	}
	return ""
}

// A Source is a place that apt gets packages from.
type Source struct {
	File       string   `json:"file"`
	Types      []string `json:"types"` // deb, deb-src
	URIs       []string `json:"uris"`  // without passwords
	Suites     []string `json:"suites"`
	Components []string `json:"components,omitempty"`
	SignedBy   string   `json:"signed-by,omitempty"`
	Disabled   bool     `json:"disabled,omitempty"`
}

func collectSources(c *collection) error {
	add := func(name string) {
		b := c.small(name)
		var list []Source
		if strings.HasSuffix(name, ".sources") {
			list = parseDeb822Sources(b)
		} else {
			list = parseOneLineSources(b)
		}
		for _, s := range list {
			s.File = "/" + name
			for i, u := range s.URIs {
				s.URIs[i] = value(withoutPassword(u))
			}
			c.it.Sources = append(c.it.Sources, s)
		}
	}
	add("etc/apt/sources.list")
	for _, n := range c.list("etc/apt/sources.list.d") {
		if strings.HasSuffix(n, ".list") || strings.HasSuffix(n, ".sources") {
			add("etc/apt/sources.list.d/" + n)
		}
	}
	return nil
}

// parseOneLineSources reads the one-line style of sources.list(5).
func parseOneLineSources(b []byte) (list []Source) {
	for line := range strings.SplitSeq(string(b), "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "deb" && f[0] != "deb-src" {
			continue
		}
		s := Source{Types: f[:1]}
		f = f[1:]
		if strings.HasPrefix(f[0], "[") {
			for len(f) > 0 {
				o := f[0]
				f = f[1:]
				if k, v, ok := strings.Cut(strings.Trim(o, "[]"), "="); ok && strings.EqualFold(k, "signed-by") {
					s.SignedBy = value(v)
				}
				if strings.HasSuffix(o, "]") {
					break
				}
			}
		}
		if len(f) < 2 {
			continue
		}
		s.URIs, s.Suites, s.Components = f[:1], values(f[1:2]), values(f[2:])
		list = append(list, s)
	}
	return list
}

// parseDeb822Sources reads the deb822 style of sources.list(5).
func parseDeb822Sources(b []byte) (list []Source) {
	fields := map[string]string{}
	key := ""
	flush := func() {
		if fields["types"] != "" {
			signed := value(strings.TrimSpace(fields["signed-by"]))
			if strings.Contains(signed, "BEGIN PGP") {
				signed = "(embedded key)"
			}
			list = append(list, Source{
				Types: values(strings.Fields(fields["types"])), URIs: strings.Fields(fields["uris"]), Suites: values(strings.Fields(fields["suites"])),
				Components: values(strings.Fields(fields["components"])), SignedBy: signed,
				Disabled: strings.EqualFold(strings.TrimSpace(fields["enabled"]), "no"),
			})
		}
		fields, key = map[string]string{}, ""
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if key != "" {
				fields[key] += "\n" + strings.TrimSpace(line)
			}
		default:
			k, v, _ := strings.Cut(line, ":")
			key = strings.ToLower(strings.TrimSpace(k))
			fields[key] = strings.TrimSpace(v)
		}
	}
	flush()
	return list
}

func values(list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, value(s))
	}
	return out
}

// withoutPassword keeps credentials that someone left in a URI out of
// reports.
func withoutPassword(u string) string {
	p, err := url.Parse(u)
	if err != nil || p.User == nil {
		return u
	}
	return p.Redacted()
}
