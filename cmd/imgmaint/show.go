package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"imgmaint/formats"
	"imgmaint/formats/open"
)

func showCommand() *cli.Command {
	return &cli.Command{
		Name:        "show",
		Usage:       "show what a package says about itself",
		ArgsUsage:   "PKG",
		Description: "Nothing is verified: see verify.",
		Flags:       []cli.Flag{jsonFlag},
		Action: func(c *cli.Context) error {
			args, err := operands(c, 1, 1)
			if err != nil {
				return err
			}
			p, err := open.Package(args[0], nil)
			if err != nil {
				return err
			}
			defer p.Close()
			if c.Bool("json") {
				return printJSON(c.App.Writer, struct {
					Package string `json:"package"`
					*formats.Descriptor
				}{args[0], p.Descriptor()})
			}
			return printDescriptor(c.App.Writer, p.Descriptor())
		},
	}
}

func printDescriptor(out io.Writer, d *formats.Descriptor) error {
	w := &textWriter{w: out}
	w.field("format", strings.TrimSpace(d.Format+" "+d.Version))
	w.field("name", d.Name)
	w.field("description", d.Description)
	for _, m := range d.Machines {
		printMachine(w, &m)
	}
	for i, k := range d.Disks {
		w.line("disk %d: %s", i+1, k.ID)
		w.field("  member", k.Member)
		w.field("  format", k.Format)
		w.field("  compression", k.Compression)
		w.size("  chunk size", k.ChunkSize)
		w.size("  virtual size", k.Size)
		w.field("  role", k.Role)
		w.field("  device", k.Device)
		w.field("  parent", k.Parent)
		w.field("  sha256", k.SHA256)
	}
	for _, m := range d.Members {
		w.line("member: %s, %d bytes", m.Name, m.Size)
	}
	for _, p := range d.Problems {
		w.line("problem: %s", p)
	}
	return w.err
}

func printMachine(w *textWriter, m *formats.Machine) {
	w.line("machine: %s", m.ID)
	w.field("  name", m.Name)
	w.field("  description", m.Description)
	w.field("  product", m.Product)
	w.field("  vendor", m.Vendor)
	w.field("  version", m.Version)
	w.field("  full version", m.FullVersion)
	w.field("  system", strings.TrimSpace(m.OS+" "+m.Arch))
	if m.CPUs > 0 {
		w.line("  cpus: %d", m.CPUs)
	}
	w.size("  memory", m.Memory)
	w.field("  disks", strings.Join(m.Disks, ", "))
	w.field("  networks", strings.Join(m.Networks, ", "))
	for _, p := range m.Properties {
		value := p.Value
		if p.Password {
			value = "(password)"
		}
		settable := ""
		if p.Settable {
			settable = ", settable"
		}
		w.line("  property %s = %q (%s%s)", p.Key, value, p.Type, settable)
		w.field("    label", p.Label)
		w.field("    description", p.Description)
	}
	for _, text := range m.Licences {
		w.line("  licence:")
		for part := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
			w.line("    %s", strings.TrimRight(part, "\r"))
		}
	}
}

// line writes one line, whatever the values hold.
func (t *textWriter) line(format string, args ...any) {
	t.printf("%s\n", strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", `\x0a`))
}

// field writes a line unless the value is empty. Lines of the value that
// follow the first are indented below it, so that none passes for a field.
func (t *textWriter) field(name, value string) {
	if value = strings.TrimSpace(value); value != "" {
		t.printf("%s: %s\n", name, strings.ReplaceAll(value, "\n", "\n      "))
	}
}

func (t *textWriter) size(name string, n int64) {
	if n > 0 {
		t.line("%s: %s (%d bytes)", name, humanSize(n), n)
	}
}
