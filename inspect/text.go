package inspect

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"imgmaint/formats"
)

// Clean returns s in a form that is safe to print on a terminal: control
// characters, invalid UTF-8 and characters that reorder text are escaped.
func Clean(s string) string {
	if strings.IndexFunc(s, unsafeRune) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case !unsafeRune(r):
			b.WriteRune(r)
		case r == unicode.ReplacementChar && !strings.HasPrefix(s[i:], "\ufffd"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

func unsafeRune(r rune) bool {
	return r == unicode.ReplacementChar || !unicode.IsPrint(r)
}

// WriteText writes the report for people. Its form may change; JSON is for
// programs.
func (r *Report) WriteText(w io.Writer) error {
	t := &text{w: bufio.NewWriter(w)}
	t.container(r.Container)
	if d := r.Disk; d != nil {
		t.disk(d)
	}
	t.line("state", string(r.State))
	t.items(&r.Items)
	if len(r.Problems) > 0 {
		t.head("problems")
		for _, p := range r.Problems {
			t.printf("  %s: %s\n", Clean(p.Where), Clean(p.What))
		}
	}
	return t.w.Flush() // which keeps the first error
}

type text struct{ w *bufio.Writer }

func (t *text) printf(format string, args ...any) { fmt.Fprintf(t.w, format, args...) }

func (t *text) line(key, val string) {
	if val != "" {
		t.printf("%-14s %s\n", key+":", Clean(val))
	}
}

func (t *text) head(s string) { t.printf("\n%s:\n", s) }

func (t *text) container(c *formats.Info) {
	if c == nil {
		return
	}
	f := c.Format
	if c.Subformat != "" {
		f += " (" + c.Subformat + ")"
	}
	t.line("format", f)
	t.line("virtual size", Size(c.VirtualSize))
	if c.ClusterSize != 0 {
		t.line("cluster size", Size(c.ClusterSize))
	}
	for _, p := range c.Properties {
		t.line(p.Name, fmt.Sprint(p.Value))
	}
	for _, ref := range c.References {
		t.line(string(ref.Kind), strconv.Quote(ref.Name))
	}
	for _, s := range c.Snapshots {
		t.line("snapshot", s.ID+" "+s.Name)
	}
}

func (t *text) disk(d *Layout) {
	if d.Table == nil {
		t.line("partitions", "none: the disk is one volume")
	} else {
		t.line("partitions", fmt.Sprintf("%s, %d, sectors of %d bytes", d.Table.Scheme, len(d.Table.Volumes), d.Table.SectorSize))
	}
	t.head("disk")
	t.printf("  %4s %15s %15s %-11s %-14s %-12s %s\n", "part", "offset", "size", "state", "type", "mount", "details")
	for _, g := range d.Ranges {
		part := "-"
		if g.Partition != 0 {
			part = strconv.Itoa(g.Partition)
		}
		var more []string
		if g.Usage != nil && g.Usage.Size > 0 {
			more = append(more, fmt.Sprintf("%d%% of %s used", 100-100*g.Usage.Free/g.Usage.Size, Size(g.Usage.Size)))
			if s := g.Usage.State; s != "" && s != "clean" {
				more = append(more, s)
			}
		}
		for _, m := range []struct{ key, val string }{{"label ", g.Label}, {"uuid ", g.UUID}, {"", g.Note}} {
			if m.val != "" {
				more = append(more, m.key+m.val)
			}
		}
		mount := g.Mount
		if mount == "" {
			mount = "-"
		}
		t.printf("  %4s %15d %15d %-11s %-14s %-12s %s\n", part, g.Off, g.Len, g.State, Clean(g.Type), Clean(mount), Clean(strings.Join(more, ", ")))
	}
	t.printf("\n")
}

func (t *text) items(it *Items) {
	if o := it.OS; o != nil {
		name := o.Pretty
		if name == "" {
			name = strings.TrimSpace(o.Name + " " + o.Version)
		}
		if o.Release != "" {
			name += " [" + o.Release + "]"
		}
		t.line("system", name)
		t.line("id", strings.TrimSpace(o.ID+" "+o.VersionID+" "+o.Codename))
	}
	t.line("architecture", it.Architecture)
	t.line("hostname", it.Hostname)
	t.line("machine-id", it.MachineID)
	t.line("init", it.Init)
	t.line("timezone", it.Timezone)
	t.line("locale", it.Locale)
	t.line("users", strings.Join(it.Users, " "))
	if len(it.Kernels) > 0 {
		t.head("kernels")
		for _, k := range it.Kernels {
			where, initrd, mods := k.Path, k.Initrd, "modules"
			if where == "" {
				where = "(no image)"
			}
			if initrd == "" {
				initrd = "no initrd"
			}
			if !k.Modules {
				mods = "no modules"
			}
			t.printf("  %s  %s  %s  %s\n", Clean(k.Version), Clean(where), Clean(initrd), mods)
		}
	}
	if len(it.BootLoaders) > 0 {
		t.head("boot loaders")
		for _, b := range it.BootLoaders {
			where := b.Where
			if b.Volume != "" {
				where = b.Volume + ":" + where
			}
			t.printf("  %s (%s)  %s\n", Clean(b.Name), b.Kind, Clean(where))
		}
	}
	if len(it.BootEntries) > 0 {
		t.head("boot entries")
		for _, b := range it.BootEntries {
			t.printf("  %s  %s  %s\n", Clean(b.File), Clean(b.Title), Clean(b.Linux))
		}
	}
	if len(it.Fstab) > 0 {
		t.head("fstab")
		for _, f := range it.Fstab {
			t.printf("  %s  %s  %s  %s\n", Clean(f.Spec), Clean(f.Dir), Clean(f.Type), Clean(f.Options))
		}
	}
	if len(it.Sources) > 0 {
		t.head("package sources")
		for _, s := range it.Sources {
			off := ""
			if s.Disabled {
				off = " (disabled)"
			}
			t.printf("  %s\n", Clean(strings.Join(s.Types, ",")+" "+strings.Join(s.URIs, " ")+" "+strings.Join(s.Suites, " ")+" "+strings.Join(s.Components, " "))+off)
		}
	}
	for _, m := range it.PackageManagers {
		t.printf("\n%s: %s, %d packages\n", Clean(m.Name+" "+m.Database), m.State, m.Packages)
	}
	for _, p := range it.Packages {
		state := ""
		if p.State != "installed" || p.Error != "" || p.Want != "" && p.Want != "install" {
			state = "  [" + strings.Join(strings.Fields(p.Want+" "+p.Error+" "+p.State), " ") + "]"
		}
		src := ""
		if p.Source != p.Name || p.SourceVersion != p.Version {
			src = "  (" + p.Source + " " + p.SourceVersion + ")"
		}
		t.printf("  %s %s %s  %s%s%s\n", Clean(p.Name), Clean(p.Version), Clean(p.Architecture), Size(p.InstalledSize), Clean(src), Clean(state))
	}
}

// Size prints a number of bytes in a unit that people read.
func Size(n int64) string {
	units := "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + " " + units[i:i+1] + "iB"
}
