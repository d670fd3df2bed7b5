package vmdk

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"imgmaint/formats"
)

// descriptor is the text that describes a disk ("The Descriptor File").
type descriptor struct {
	cid        uint32 // CID
	parentCID  uint32 // parentCID
	createType string
	parentHint string // parentFileNameHint
	extents    []extent
	ddb        []formats.Property // in the order of the text
}

// extent is a line "RW 4192256 SPARSE "disk-s001.vmdk" 0".
type extent struct {
	access  string // RW, RDONLY or NOACCESS
	sectors int64
	kind    string // SPARSE, FLAT, ZERO, VMFS, VMFSSPARSE, ...
	name    string // quoted file name; a stranger's word
}

// isDescriptor reports whether b starts as a descriptor file does: after
// comments and empty lines comes a version. The first line usually is
// "# Disk DescriptorFile".
func isDescriptor(b []byte) bool {
	if len(b) > 4096 {
		b = b[:4096]
	}
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		if line[0] == '#' {
			if bytes.EqualFold(bytes.TrimSpace(line[1:]), []byte("Disk DescriptorFile")) {
				return true
			}
			continue
		}
		k, v, ok := bytes.Cut(line, []byte("="))
		return ok && string(bytes.TrimSpace(k)) == "version" && len(bytes.TrimSpace(v)) == 1
	}
	return false
}

// parseDescriptor parses the text of a descriptor, which ends at a NUL and
// lies at off in the file.
func parseDescriptor(b []byte, off int64) (*descriptor, error) {
	b, _, _ = bytes.Cut(b, []byte{0})
	d := &descriptor{parentCID: noParent}
	lines := 0
	for l := range bytes.Lines(b) {
		line := strings.TrimSpace(strings.ToValidUTF8(string(l), "\uFFFD"))
		if line == "" || line[0] == '#' {
			continue
		}
		if lines++; lines > maxLines {
			return nil, formats.Limit(Name, off, "descriptor", "more than %d lines", maxLines)
		}
		if e, ok, err := parseExtent(line); err != nil {
			return nil, corrupt(off, "descriptor", "%v", err)
		} else if ok {
			d.extents = append(d.extents, e)
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			continue // of a later version
		}
		k, v = strings.TrimSpace(k), unquote(strings.TrimSpace(v))
		var err error
		switch {
		case k == "CID":
			d.cid, err = parseCID(v)
		case k == "parentCID":
			d.parentCID, err = parseCID(v)
		case k == "createType":
			d.createType = v
		case k == "parentFileNameHint":
			d.parentHint = v
		case strings.HasPrefix(k, "ddb."):
			d.ddb = append(d.ddb, formats.Property{Name: k, Value: v})
		}
		if err != nil {
			return nil, corrupt(off, k, "%q", v)
		}
	}
	return d, nil
}

func parseCID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 16, 32)
	return uint32(n), err
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// parseExtent parses an extent line; ok is false for a line that is none.
func parseExtent(line string) (e extent, ok bool, err error) {
	access, rest, _ := strings.Cut(line, " ")
	switch access {
	case "RW", "RDONLY", "NOACCESS":
	default:
		return extent{}, false, nil
	}
	before, name, quoted := strings.Cut(rest, `"`)
	f := strings.Fields(before)
	if len(f) < 2 {
		return extent{}, false, fmt.Errorf("extent line %q", line)
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil || n < 0 {
		return extent{}, false, fmt.Errorf("extent of %q sectors", f[0])
	}
	e = extent{access: access, sectors: n, kind: f[1]}
	if quoted {
		e.name, _, _ = strings.Cut(name, `"`)
	}
	return e, true, nil
}

// refuse returns why a disk of several files, or of none that holds the data,
// is not opened: by its kind and the names it gives, which are never opened.
func (d *descriptor) refuse(off int64) error {
	var b strings.Builder
	for i, e := range d.extents {
		if i == 4 {
			fmt.Fprintf(&b, " and %d more", len(d.extents)-i)
			break
		}
		fmt.Fprintf(&b, " %s %q", e.kind, e.name)
	}
	kind := d.createType
	if kind == "" {
		kind = "unknown"
	}
	return formats.Unsupported(Name, off, "createType", "%q with extents%s", kind, b.String())
}

// supported reports whether the disk is the one sparse file the descriptor is
// in.
func (d *descriptor) supported() bool {
	switch d.createType {
	case "streamOptimized", "monolithicSparse":
		return len(d.extents) == 1 && d.extents[0].kind == "SPARSE"
	}
	return false
}
