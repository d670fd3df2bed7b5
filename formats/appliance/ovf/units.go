package ovf

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Units is a programmatic unit (DSP0004 annex C): "byte * 2^20".
type Units struct {
	Base   string // byte, hertz, count, ...
	Factor int64  // one unit in terms of Base
}

// namedUnits are the spellings of drafts and exporters from before
// programmatic units.
var namedUnits = map[string]Units{
	"bytes": {"byte", 1}, "b": {"byte", 1},
	"kilobytes": {"byte", 1 << 10}, "kb": {"byte", 1 << 10},
	"megabytes": {"byte", 1 << 20}, "mb": {"byte", 1 << 20},
	"gigabytes": {"byte", 1 << 30}, "gb": {"byte", 1 << 30},
	"terabytes": {"byte", 1 << 40}, "tb": {"byte", 1 << 40},
	"mhz": {"hertz", 1_000_000}, "megahertz": {"hertz", 1_000_000},
}

// ParseUnits parses a base unit with multipliers: integers and powers, as
// "byte * 2^30" and "byte * 1024 * 1024". Divisors are not units of anything
// a descriptor counts and are refused, as is what exceeds 63 bits.
func ParseUnits(s string) (Units, error) {
	parts := strings.Split(s, "*")
	base := strings.ToLower(strings.TrimSpace(parts[0]))
	u, ok := namedUnits[base]
	if !ok {
		for _, c := range base {
			if (c < 'a' || c > 'z') && c != ' ' && c != '-' {
				return Units{}, fmt.Errorf("unit %q", clip(s))
			}
		}
		if base == "" {
			return Units{}, fmt.Errorf("unit %q", clip(s))
		}
		u = Units{base, 1}
	}
	for _, p := range parts[1:] {
		f, ok := factor(strings.TrimSpace(p))
		if !ok || u.Factor > math.MaxInt64/f {
			return Units{}, fmt.Errorf("unit %q", clip(s))
		}
		u.Factor *= f
	}
	return u, nil
}

// factor is an integer or a power of integers, above 0.
func factor(s string) (int64, bool) {
	base, exp, isPower := strings.Cut(s, "^")
	b, err := strconv.ParseUint(strings.TrimSpace(base), 10, 32)
	if err != nil || b == 0 {
		return 0, false
	}
	if !isPower {
		return int64(b), true
	}
	e, err := strconv.ParseUint(strings.TrimPrefix(strings.TrimSpace(exp), "+"), 10, 8)
	if err != nil || e > 62 {
		return 0, false
	}
	f := int64(1)
	for range e {
		if f > math.MaxInt64/int64(b) {
			return 0, false
		}
		f *= int64(b)
	}
	return f, true
}

// Of returns n units in terms of the base; ok is false when that exceeds 63
// bits.
func (u Units) Of(n int64) (v int64, ok bool) {
	if n < 0 || u.Factor <= 0 || n > math.MaxInt64/u.Factor {
		return 0, false
	}
	return n * u.Factor, true
}

// diskFormats maps the start of ovf:format to the format it stands for. The
// values are URIs of specifications; exporters agree on few of them.
var diskFormats = []struct{ prefix, format string }{
	{"http://www.vmware.com/interfaces/specifications/vmdk.html", "vmdk"},
	{"http://www.vmware.com/specifications/vmdk.html", "vmdk"},
	{"http://www.vmware.com/technical-resources/interfaces/vmdk", "vmdk"},
	{"http://www.vmware.com/support/developer/vddk", "vmdk"},
	{"http://www.gnome.org/~markmc/qcow-image-format", "qcow2"},
	{"http://www.linux-kvm.org/wiki/images/", "qcow2"},
	{"http://www.microsoft.com/technet/virtualserver/downloads/vhdspec", "vhd"},
	{"http://technet.microsoft.com/en-us/virtualserver/bb676673", "vhd"},
	{"http://technet.microsoft.com/en-us/library/bb676673", "vhd"},
	{"http://go.microsoft.com/fwlink/?linkid=137171", "vhd"},
	{"http://go.microsoft.com/fwlink/p/?linkid=137171", "vhd"},
	{"http://www.microsoft.com/en-us/download/details.aspx?id=34750", "vhdx"},
	{"http://www.virtualbox.org/ovf/machine/vdi", "vdi"},
	{"http://www.ecma-international.org/publications/standards/ecma-119", "iso"},
}

// FormatURI is the ovf:format we write for a disk format; "" when there is
// none in use.
func FormatURI(format string) string {
	switch format {
	case "vmdk":
		return "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
	case "qcow2":
		return "http://www.gnome.org/~markmc/qcow-image-format.html"
	case "vhd":
		return "http://www.microsoft.com/technet/virtualserver/downloads/vhdspec.mspx"
	case "iso":
		return "http://www.ecma-international.org/publications/standards/Ecma-119.htm"
	}
	return ""
}

// diskFormat is what an ovf:format stands for, "" when unknown.
func diskFormat(uri string) string {
	l := strings.ToLower(strings.TrimSpace(uri))
	l = strings.Replace(l, "https://", "http://", 1)
	for _, f := range diskFormats {
		if strings.HasPrefix(l, f.prefix) {
			return f.format
		}
	}
	switch l {
	case "raw", "qcow2", "vhd", "vmdk", "vhdx", "vdi", "iso":
		return l
	case "cow": // ovf:volume-format of oVirt
		return "qcow2"
	}
	return ""
}
