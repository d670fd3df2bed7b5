package inspect

import (
	"errors"
	"strings"
)

// An OS says which system is installed, in the terms of os-release(5).
type OS struct {
	ID        string   `json:"id,omitempty"`
	IDLike    []string `json:"id-like,omitempty"`
	Name      string   `json:"name,omitempty"`
	Pretty    string   `json:"pretty-name,omitempty"`
	Version   string   `json:"version,omitempty"`
	VersionID string   `json:"version-id,omitempty"`
	Codename  string   `json:"codename,omitempty"`
	Variant   string   `json:"variant-id,omitempty"`
	BuildID   string   `json:"build-id,omitempty"`
	ImageID   string   `json:"image-id,omitempty"`
	// ImageVersion is IMAGE_VERSION.
	ImageVersion string `json:"image-version,omitempty"`
	SupportEnd   string `json:"support-end,omitempty"`
	// Release is what a file of the distribution says more precisely, as
	// /etc/debian_version does.
	Release string `json:"release,omitempty"`
	Source  string `json:"source"` // the file it is from
}

func collectOS(c *collection) error {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release", "etc/initrd-release"} {
		b := c.small(name)
		if b == nil {
			continue
		}
		o := parseOSRelease(b)
		o.Source = "/" + name
		if o.ID == "" && o.Name == "" && o.Pretty == "" {
			c.rep.problem("/"+name, errors.New("names no system"))
			continue
		}
		if o.ID == "" {
			o.ID = "linux" // the default of os-release(5)
		}
		c.it.OS = o
		break
	}
	if c.it.OS == nil {
		c.it.OS = c.olderRelease()
	}
	if c.it.OS == nil {
		return errors.New("which system this is could not be told")
	}
	if rel := firstLine(c.small("etc/debian_version")); rel != "" && (c.it.OS.ID == "debian" || c.it.OS.Source == "/etc/debian_version") {
		c.it.OS.Release = rel
	}
	return nil
}

// olderRelease looks at the files that were there before os-release.
func (c *collection) olderRelease() *OS {
	if b := c.small("etc/lsb-release"); b != nil {
		v := parseAssignments(b)
		if v["DISTRIB_ID"] != "" {
			return &OS{
				ID: strings.ToLower(v["DISTRIB_ID"]), Name: v["DISTRIB_ID"], Pretty: v["DISTRIB_DESCRIPTION"],
				VersionID: v["DISTRIB_RELEASE"], Version: v["DISTRIB_RELEASE"], Codename: v["DISTRIB_CODENAME"], Source: "/etc/lsb-release",
			}
		}
	}
	for _, f := range []struct{ name, id, label string }{
		{"etc/debian_version", "debian", "Debian GNU/Linux"}, {"etc/alpine-release", "alpine", "Alpine Linux"},
		{"etc/centos-release", "centos", ""}, {"etc/rocky-release", "rocky", ""}, {"etc/almalinux-release", "almalinux", ""},
		{"etc/oracle-release", "ol", ""}, {"etc/fedora-release", "fedora", ""}, {"etc/redhat-release", "rhel", ""},
		{"etc/SuSE-release", "suse", ""}, {"etc/gentoo-release", "gentoo", ""}, {"etc/arch-release", "arch", "Arch Linux"},
		{"etc/slackware-version", "slackware", ""}, {"etc/system-release", "linux", ""}, {"etc/issue", "linux", ""},
	} {
		b := c.small(f.name)
		if b == nil {
			continue
		}
		line := firstLine(b)
		if f.name == "etc/issue" { // escapes of agetty
			line = strings.TrimSpace(strings.NewReplacer(`\n`, "", `\l`, "", `\r`, "", `\m`, "").Replace(line))
		}
		if line == "" && f.label == "" {
			continue
		}
		o := &OS{ID: f.id, Name: f.label, Pretty: line, Source: "/" + f.name}
		if f.label != "" { // the file is the version alone
			o.Pretty, o.VersionID, o.Version = strings.TrimSpace(f.label+" "+line), line, line
			return o
		}
		words := strings.Fields(line)
		for i, w := range words {
			if w[0] >= '0' && w[0] <= '9' {
				o.VersionID, o.Version = w, strings.Join(words[i:], " ")
				words = words[:i]
				break
			}
		}
		o.Name = strings.TrimSuffix(strings.Join(words, " "), " release")
		if a, b := strings.LastIndexByte(line, '('), strings.LastIndexByte(line, ')'); a >= 0 && b > a {
			o.Codename = line[a+1 : b]
		}
		return o
	}
	return nil
}

func parseOSRelease(b []byte) *OS {
	v := parseAssignments(b)
	o := &OS{
		ID: v["ID"], IDLike: strings.Fields(v["ID_LIKE"]), Name: v["NAME"], Pretty: v["PRETTY_NAME"], Version: v["VERSION"],
		VersionID: v["VERSION_ID"], Codename: v["VERSION_CODENAME"], Variant: v["VARIANT_ID"], BuildID: v["BUILD_ID"],
		ImageID: v["IMAGE_ID"], ImageVersion: v["IMAGE_VERSION"], SupportEnd: v["SUPPORT_END"],
	}
	if o.Codename == "" {
		o.Codename = v["UBUNTU_CODENAME"]
	}
	if len(o.IDLike) == 0 {
		o.IDLike = nil
	}
	return o
}

// parseAssignments reads the lines of os-release(5): NAME=value with the
// quotes and escapes of a shell, and nothing else of a shell. The last of
// several assignments wins.
func parseAssignments(b []byte) map[string]string {
	v := map[string]string{}
	for line := range strings.SplitSeq(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, val, ok := strings.Cut(line, "=")
		if !ok || key == "" || strings.ContainsAny(key, " \t'\"") {
			continue
		}
		v[key] = value(unquote(val))
	}
	return v
}

// unquote undoes the quoting of one shell word. What is behind the word is
// left out, as a shell would take it for something else.
func unquote(s string) string {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '\\' && i+1 < len(s):
			// Within double quotes a backslash counts before four characters.
			if next := s[i+1]; quote == 0 || next == '"' || next == '\\' || next == '$' || next == '`' {
				i++
				c = next
			}
			b.WriteByte(c)
		case c == quote && quote != 0:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote == 0 && (c == ' ' || c == '\t' || c == ';'):
			return b.String()
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
