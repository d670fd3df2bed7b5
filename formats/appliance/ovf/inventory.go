package ovf

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"imgmaint/formats"
)

// Inventory is our content descriptor: what is inside a virtual system, for
// an agent that does not want to open its disks. It is carried by one
// element, InventorySection in NSInventory, with ovf:required="false", as a
// section of the system. Bulk (a software bill of materials) is a file of the
// package, which Documents names; the manifest covers both.
//
// It is the package's word until its digests have been compared with the
// disks: Contents and PackageSets say how.
type Inventory struct {
	Schema      int              `json:"schema"`       // im:schema, 1
	Generated   time.Time        `json:"generated"`    // im:Generated@at, in UTC and seconds
	GeneratedBy string           `json:"generated-by"` // im:Generated@by
	Method      string           `json:"method"`       // im:Generated@method: offline-inspection
	OS          *InventoryOS     `json:"os,omitempty"` //
	Volumes     []Volume         `json:"volumes,omitempty"`
	Contents    []Content        `json:"contents,omitempty"`
	PackageSets []PackageSet     `json:"package-sets,omitempty"`
	Documents   []Document       `json:"documents,omitempty"`
	Sources     []UpdateSource   `json:"update-sources,omitempty"`
	Assessment  *Assessment      `json:"assessment,omitempty"`
	Maintenance *Maintenance     `json:"maintenance,omitempty"`
	Patched     []PatchedPackage `json:"patched,omitempty"`
}

// InventoryOS is im:OperatingSystem.
type InventoryOS struct {
	ID           string `json:"id"`
	VersionID    string `json:"version-id,omitempty"`
	Release      string `json:"release,omitempty"`
	Arch         string `json:"arch,omitempty"`
	CPE          string `json:"cpe,omitempty"`
	EndOfSupport string `json:"end-of-support,omitempty"` // a date
}

// A Volume is im:Volume: a part of a disk and whether it was read, so that
// what is missing from the inventory is known to be missing.
type Volume struct {
	DiskRef string `json:"disk-ref"` // ovf:diskRef
	Index   int    `json:"index"`
	Offset  int64  `json:"offset"` // bytes
	FS      string `json:"fs,omitempty"`
	UUID    string `json:"uuid,omitempty"`
	Mount   string `json:"mount,omitempty"`
	State   string `json:"state"` // read, encrypted, unsupported or empty
}

// A Content is im:Content: the digest of the bytes the guest sees on a disk,
// whatever its format and compression.
type Content struct {
	DiskRef   string `json:"disk-ref"`
	Algorithm string `json:"algorithm"` // sha256
	Digest    string `json:"digest"`    // im:guestDigest, hex
}

// A PackageSet is im:PackageSet.
type PackageSet struct {
	Manager string `json:"manager"` // dpkg
	Count   int    `json:"count"`
	Digest  string `json:"digest"` // sha256:hex
	DBPath  string `json:"db-path,omitempty"`
}

// A Document is im:Document: a file of the package about its content.
type Document struct {
	FileRef   string `json:"file-ref"` // ovf:fileRef
	MediaType string `json:"media-type"`
	Digest    string `json:"digest,omitempty"`
}

// An UpdateSource is im:UpdateSource.
type UpdateSource struct {
	Type       string `json:"type"` // apt
	URI        string `json:"uri"`
	Suite      string `json:"suite,omitempty"`
	Components string `json:"components,omitempty"`
	Key        string `json:"key-fingerprint,omitempty"`
}

// An Assessment is im:Assessment: how many updates were pending, by which
// metadata.
type Assessment struct {
	At       time.Time `json:"at"`
	Digest   string    `json:"metadata-digest,omitempty"`
	Pending  int       `json:"pending"`
	Security int       `json:"security"`
}

// Maintenance is im:Maintenance.
type Maintenance struct {
	Policy    string `json:"policy"` // direct, sandbox or boot
	FirstBoot string `json:"first-boot,omitempty"`
}

// A PatchedPackage is im:Patched: one update that was applied offline.
type PatchedPackage struct {
	At       time.Time `json:"at"`
	From     string    `json:"from"`
	To       string    `json:"to"`
	Mode     string    `json:"mode,omitempty"`
	Advisory string    `json:"advisory,omitempty"`
}

// InventorySchema is the schema we write and read. A later one keeps the
// meaning of what is here.
const InventorySchema = 1

// maxInventory bounds the entries of one section of every kind together.
const maxInventory = 20000

// at writes a time as the section has it.
func at(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// lines writes the section for a system, one element a line.
func (inv *Inventory) lines(system node) ([]string, error) {
	if n := len(inv.Volumes) + len(inv.Contents) + len(inv.PackageSets) + len(inv.Documents) + len(inv.Sources) + len(inv.Patched); n > maxInventory {
		return nil, formats.Limit(Name, -1, "InventorySection", "%d entries, at most %d", n, maxInventory)
	}
	m := system.names()
	im := "im:"
	if pre, ok := system.prefixOf(NSInventory, true); ok {
		im = pre + ":"
	} else {
		im = system.freePrefix("im") + ":"
	}
	var err error
	// element writes name with the attributes that are not empty. A name
	// with "ovf:" goes to the envelope's namespace.
	element := func(name string, attrs ...string) string {
		var b strings.Builder
		b.WriteString("\t<" + im + name)
		for i := 0; i < len(attrs); i += 2 {
			if attrs[i+1] == "" {
				continue
			}
			if err == nil {
				err = checkText(name+"@"+attrs[i], attrs[i+1])
			}
			if local, ok := strings.CutPrefix(attrs[i], "ovf:"); ok {
				fmt.Fprintf(&b, ` %s%s="%s"`, m.attr, local, escapeAttr(attrs[i+1]))
			} else {
				fmt.Fprintf(&b, ` %s%s="%s"`, im, attrs[i], escapeAttr(attrs[i+1]))
			}
		}
		b.WriteString("/>")
		return b.String()
	}
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	schema := inv.Schema
	if schema == 0 {
		schema = InventorySchema
	}
	lines := []string{
		fmt.Sprintf(`<%sInventorySection%s xmlns:%s="%s" %srequired="false" %sschema="%d">`,
			im, m.decls, strings.TrimSuffix(im, ":"), NSInventory, m.attr, im, schema),
		fmt.Sprintf("\t<%sInfo>Installed software and maintenance state of this virtual system</%sInfo>", m.elem, m.elem),
		element("Generated", "at", at(inv.Generated), "by", inv.GeneratedBy, "method", inv.Method),
	}
	if o := inv.OS; o != nil {
		lines = append(lines, element("OperatingSystem", "id", o.ID, "versionId", o.VersionID, "release", o.Release,
			"arch", o.Arch, "cpe", o.CPE, "endOfSupport", o.EndOfSupport))
	}
	for _, v := range inv.Volumes {
		lines = append(lines, element("Volume", "ovf:diskRef", v.DiskRef, "index", num(int64(v.Index)), "offset", num(v.Offset),
			"fs", v.FS, "uuid", v.UUID, "mount", v.Mount, "state", v.State))
	}
	for _, c := range inv.Contents {
		lines = append(lines, element("Content", "ovf:diskRef", c.DiskRef, "algorithm", c.Algorithm, "guestDigest", c.Digest))
	}
	for _, p := range inv.PackageSets {
		lines = append(lines, element("PackageSet", "manager", p.Manager, "count", num(int64(p.Count)), "digest", p.Digest, "dbPath", p.DBPath))
	}
	for _, d := range inv.Documents {
		lines = append(lines, element("Document", "ovf:fileRef", d.FileRef, "mediaType", d.MediaType, "digest", d.Digest))
	}
	for _, u := range inv.Sources {
		lines = append(lines, element("UpdateSource", "type", u.Type, "uri", u.URI, "suite", u.Suite, "components", u.Components, "keyFingerprint", u.Key))
	}
	if a := inv.Assessment; a != nil {
		lines = append(lines, element("Assessment", "at", at(a.At), "metadataDigest", a.Digest,
			"pending", num(int64(a.Pending)), "security", num(int64(a.Security))))
	}
	if t := inv.Maintenance; t != nil {
		lines = append(lines, element("Maintenance", "policy", t.Policy, "firstBoot", t.FirstBoot))
	}
	for _, p := range inv.Patched {
		lines = append(lines, element("Patched", "at", at(p.At), "from", p.From, "to", p.To, "mode", p.Mode, "advisory", p.Advisory))
	}
	return append(lines, "</"+im+"InventorySection>"), err
}

// Inventory reads the inventory section of a system; nil, nil when it has
// none. Elements and attributes of later schemas are ignored.
func (e *Envelope) Inventory(system string) (*Inventory, error) {
	s := e.System(system)
	if s == nil {
		return nil, notFound("system", system)
	}
	for c := range (node{e.p, s.node}).children() {
		if c.ns() == NSInventory && c.local() == "InventorySection" {
			return readInventory(c)
		}
	}
	return nil, nil
}

// imReader reads attributes of our namespace and keeps the first error.
type imReader struct{ err error }

func (r *imReader) str(c node, local string) string {
	s, _ := c.attrNS(NSInventory, local)
	return s
}

func (r *imReader) num(c node, local string) int64 {
	s, ok := c.attrNS(NSInventory, local)
	if !ok {
		return 0
	}
	n, err := parseNumber(s)
	if err != nil && r.err == nil {
		r.err = formats.Corrupt(Name, c.off(), c.qname()+"@"+local, "%q is not a number", clip(s))
	}
	return n
}

func (r *imReader) small(c node, local string) int {
	n := r.num(c, local)
	if n > 1<<31-1 && r.err == nil {
		r.err = formats.Limit(Name, c.off(), c.qname()+"@"+local, "%d", n)
	}
	return int(n)
}

func (r *imReader) time(c node, local string) time.Time {
	s, ok := c.attrNS(NSInventory, local)
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil && r.err == nil {
		r.err = formats.Corrupt(Name, c.off(), c.qname()+"@"+local, "%q is not a time", clip(s))
	}
	return t.UTC()
}

func readInventory(sec node) (*Inventory, error) {
	var r imReader
	inv := &Inventory{Schema: r.small(sec, "schema")}
	if inv.Schema < 1 {
		return nil, formats.Corrupt(Name, sec.off(), "InventorySection@schema", "%d", inv.Schema)
	}
	entries := 0
	for c := range sec.children() {
		if c.ns() != NSInventory {
			continue
		}
		if entries++; entries > maxInventory {
			return nil, formats.Limit(Name, sec.off(), "InventorySection", "more than %d entries", maxInventory)
		}
		switch c.local() {
		case "Generated":
			inv.Generated, inv.GeneratedBy, inv.Method = r.time(c, "at"), r.str(c, "by"), r.str(c, "method")
		case "OperatingSystem":
			inv.OS = &InventoryOS{r.str(c, "id"), r.str(c, "versionId"), r.str(c, "release"), r.str(c, "arch"), r.str(c, "cpe"), r.str(c, "endOfSupport")}
		case "Volume":
			inv.Volumes = append(inv.Volumes, Volume{c.str("diskRef"), r.small(c, "index"), r.num(c, "offset"),
				r.str(c, "fs"), r.str(c, "uuid"), r.str(c, "mount"), r.str(c, "state")})
		case "Content":
			inv.Contents = append(inv.Contents, Content{c.str("diskRef"), r.str(c, "algorithm"), r.str(c, "guestDigest")})
		case "PackageSet":
			inv.PackageSets = append(inv.PackageSets, PackageSet{r.str(c, "manager"), r.small(c, "count"), r.str(c, "digest"), r.str(c, "dbPath")})
		case "Document":
			inv.Documents = append(inv.Documents, Document{c.str("fileRef"), r.str(c, "mediaType"), r.str(c, "digest")})
		case "UpdateSource":
			inv.Sources = append(inv.Sources, UpdateSource{r.str(c, "type"), r.str(c, "uri"), r.str(c, "suite"), r.str(c, "components"), r.str(c, "keyFingerprint")})
		case "Assessment":
			inv.Assessment = &Assessment{r.time(c, "at"), r.str(c, "metadataDigest"), r.small(c, "pending"), r.small(c, "security")}
		case "Maintenance":
			inv.Maintenance = &Maintenance{r.str(c, "policy"), r.str(c, "firstBoot")}
		case "Patched":
			inv.Patched = append(inv.Patched, PatchedPackage{r.time(c, "at"), r.str(c, "from"), r.str(c, "to"), r.str(c, "mode"), r.str(c, "advisory")})
		}
	}
	return inv, r.err
}
