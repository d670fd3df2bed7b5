package ovf

import (
	"encoding/json"
	"fmt"
	"strings"
)

// An Envelope is a parsed descriptor (DSP0243 section 7). Values are as the
// descriptor has them; what refers to something else is checked by Validate,
// not here. Offsets are into the descriptor's bytes.
type Envelope struct {
	Version        string          `json:"version"` // 1 or 2: the major version of the namespace
	Lang           string          `json:"lang,omitempty"`
	Files          []File          `json:"files"`
	Disks          []Disk          `json:"disks"` // shared disks too
	Networks       []Network       `json:"networks,omitempty"`
	Configurations []Configuration `json:"configurations,omitempty"`
	Groups         []Group         `json:"placement-groups,omitempty"`
	Encryption     *Encryption     `json:"encryption,omitempty"`
	Content        *System         `json:"content,omitempty"`
	Strings        []Bundle        `json:"strings,omitempty"`
	Unknown        []Section       `json:"unknown-sections,omitempty"`
	// Notes are oddities that reading tolerated.
	Notes []Finding `json:"notes,omitempty"`

	p *parser
}

// Bytes returns the text the envelope was parsed from. It must not be
// changed.
func (e *Envelope) Bytes() []byte { return e.p.d.text }

// A Text is a string for people. MsgID names its translations in the string
// bundles (section 10).
type Text struct {
	Value string `json:"text"`
	MsgID string `json:"msgid,omitempty"`
}

// A File is an entry of References (section 7.1).
type File struct {
	ID          string `json:"id"`   // ovf:id
	Href        string `json:"href"` // ovf:href, a URI reference
	Size        int64  `json:"size"` // ovf:size in bytes, -1 when absent
	Compression string `json:"compression,omitempty"`
	ChunkSize   int64  `json:"chunk-size,omitempty"` // ovf:chunkSize in bytes, 0 when whole

	off int64
}

// A Disk is an entry of DiskSection or SharedDiskSection (section 9.1).
type Disk struct {
	ID      string `json:"id"`                 // ovf:diskId
	FileRef string `json:"file-ref,omitempty"` // "" for a disk that starts empty
	// Capacity is ovf:capacity times ovf:capacityAllocationUnits in bytes;
	// -1 when a property gives it.
	Capacity         int64  `json:"capacity"`
	CapacityProperty string `json:"capacity-property,omitempty"` // key of the property, from "${key}"
	Units            string `json:"units,omitempty"`             // as written
	FormatURI        string `json:"format-uri,omitempty"`        // ovf:format
	Format           string `json:"format,omitempty"`            // raw, qcow2, vhd, vmdk ...; "" when unknown
	PopulatedSize    int64  `json:"populated-size"`              // bytes, -1 when absent
	ParentRef        string `json:"parent-ref,omitempty"`
	Shared           bool   `json:"shared,omitempty"`
	UUID             string `json:"uuid,omitempty"` // vbox:uuid

	unit int64 // bytes
	off  int64
}

// A Network is a logical network (section 9.2).
type Network struct {
	Name        string `json:"name"`
	Description Text   `json:"description,omitzero"`

	off int64
}

// A Configuration is a deployment option (section 9.8).
type Configuration struct {
	ID          string `json:"id"`
	Default     bool   `json:"default,omitempty"`
	Label       Text   `json:"label,omitzero"`
	Description Text   `json:"description,omitzero"`

	off int64
}

// A Group is a PlacementGroupSection (2.x section 9.16).
type Group struct {
	ID     string `json:"id"`
	Policy string `json:"policy"` // affinity, availability ...

	off int64
}

// Encryption is an EncryptionSection (2.x section 9.12): XML Encryption of
// files of the package.
type Encryption struct {
	Algorithms []string `json:"algorithms,omitempty"` // URIs
	References []string `json:"references,omitempty"` // URIs of what is encrypted
}

// A Bundle is a string bundle (section 10).
type Bundle struct {
	Lang     string            `json:"lang"`
	FileRef  string            `json:"file-ref,omitempty"` // of an external bundle
	Messages map[string]string `json:"messages,omitempty"`
}

// A Section is one this package does not interpret. Its bytes are
// Bytes()[Off:End].
type Section struct {
	Name      string `json:"name"` // local
	Namespace string `json:"namespace"`
	Required  bool   `json:"required"`
	Off       int64  `json:"offset"`
	End       int64  `json:"end"`
}

// A System is a VirtualSystem or a VirtualSystemCollection (sections 7.2 and
// 7.3).
type System struct {
	ID          string            `json:"id"`
	Collection  bool              `json:"collection,omitempty"`
	Info        Text              `json:"info,omitzero"`
	Name        Text              `json:"name,omitzero"`
	OS          *OperatingSystem  `json:"operating-system,omitempty"`
	Hardware    []Hardware        `json:"hardware,omitempty"` // alternatives
	Products    []Product         `json:"products,omitempty"`
	Licences    []Text            `json:"licences,omitempty"` // EulaSection
	Annotations []Text            `json:"annotations,omitempty"`
	Install     *Install          `json:"install,omitempty"`
	Startup     []StartupItem     `json:"startup,omitempty"`
	Resources   []Item            `json:"resources,omitempty"` // ResourceAllocationSection
	Files       []EnvironmentFile `json:"environment-files,omitempty"`
	Boot        []BootSource      `json:"boot,omitempty"`
	ScaleOut    *ScaleOut         `json:"scale-out,omitempty"`
	Placement   string            `json:"placement,omitempty"` // id of a Group
	Systems     []*System         `json:"systems,omitempty"`
	Unknown     []Section         `json:"unknown-sections,omitempty"`
	HasInv      bool              `json:"has-inventory,omitempty"` // read it with Envelope.Inventory

	node int32
	off  int64
}

// Walk calls fn for s and every system below it, parents first.
func (s *System) Walk(fn func(*System)) {
	if s == nil {
		return
	}
	fn(s)
	for _, c := range s.Systems {
		c.Walk(fn)
	}
}

// Machines returns the virtual systems of the package, without the
// collections, in document order.
func (e *Envelope) Machines() []*System {
	var all []*System
	e.Content.Walk(func(s *System) {
		if !s.Collection {
			all = append(all, s)
		}
	})
	return all
}

// System returns the system or collection with that id, or nil. The id ""
// stands for the content itself.
func (e *Envelope) System(id string) *System {
	if id == "" {
		return e.Content
	}
	var found *System
	e.Content.Walk(func(s *System) {
		if s.ID == id && found == nil {
			found = s
		}
	})
	return found
}

// File returns the file with that ovf:id, or nil.
func (e *Envelope) File(id string) *File {
	for i := range e.Files {
		if e.Files[i].ID == id {
			return &e.Files[i]
		}
	}
	return nil
}

// Disk returns the disk with that ovf:diskId, or nil.
func (e *Envelope) Disk(id string) *Disk {
	for i := range e.Disks {
		if e.Disks[i].ID == id {
			return &e.Disks[i]
		}
	}
	return nil
}

// Localise returns t in the wished language (an RFC 5646 tag): from the
// bundle of that language, else of its primary language, else as it stands.
func (e *Envelope) Localise(t Text, lang string) string {
	if t.MsgID == "" || lang == "" {
		return t.Value
	}
	for _, match := range []func(string) bool{
		func(l string) bool { return strings.EqualFold(l, lang) },
		func(l string) bool { return strings.EqualFold(primary(l), primary(lang)) },
	} {
		for _, b := range e.Strings {
			if s, ok := b.Messages[t.MsgID]; ok && match(b.Lang) {
				return s
			}
		}
	}
	return t.Value
}

func primary(lang string) string { s, _, _ := strings.Cut(lang, "-"); return s }

// A Level ranks a Finding.
type Level uint8

const (
	// Warning: readers cope, or the schema alone is offended.
	Warning Level = iota
	// Fault: what the package says of itself is not so; importers fail.
	Fault
)

func (l Level) String() string {
	if l == Fault {
		return "error"
	}
	return "warning"
}

// MarshalJSON writes the level by name.
func (l Level) MarshalJSON() ([]byte, error) { return json.Marshal(l.String()) }

// A Finding is one rule a package breaks.
type Finding struct {
	Level  Level  `json:"level"`
	Rule   string `json:"rule"`   // short and stable: "references", "unique-id", "order" ...
	Off    int64  `json:"offset"` // in the descriptor, or -1
	Detail string `json:"detail"`
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s", f.Rule, f.Detail) }

// findings collects at most maxProblems.
type findings struct {
	list    []Finding
	dropped int
}

func (f *findings) add(l Level, rule string, off int64, msg string, args ...any) {
	if len(f.list) >= maxProblems {
		f.dropped++
		return
	}
	f.list = append(f.list, Finding{l, rule, off, fmt.Sprintf(msg, args...)})
}

// done returns what was found; what did not fit is counted in a last entry.
func (f *findings) done() []Finding {
	if f.dropped > 0 {
		f.list = append(f.list, Finding{Warning, "more", -1, fmt.Sprintf("%d further findings", f.dropped)})
	}
	return f.list
}
