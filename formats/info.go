package formats

import "time"

// A Reference is a name found inside an image: a backing file, a data file,
// the parent of a differencing disk. It is a stranger's word: it is shown
// quoted and never opened, unless a Resolver the caller passed says what it
// stands for.
type Reference struct {
	Kind   RefKind `json:"kind"`
	Name   string  `json:"name"`
	Format string  `json:"format,omitempty"` // declared format, empty when undeclared
	// ID is the identity the child expects of its parent, where the format
	// has one (VHD: the parent's unique id); empty otherwise.
	ID string `json:"id,omitempty"`
}

// A RefKind says what a Reference is for.
type RefKind string

const (
	RefBacking RefKind = "backing"   // image to read where this one holds nothing
	RefData    RefKind = "data-file" // raw file that holds this image's data clusters
	RefParent  RefKind = "parent"    // backing image of a differencing disk, chosen among locators
)

// A Resolver opens what a Reference stands for. Leaves call it at most once a
// reference, and never open anything by themselves; without one, an image
// that needs another file is refused as unsupported.
type Resolver func(ref Reference) (Image, error)

// Info is what an image says about itself. Leaves fill it from the parsed
// header; none of it requires reading guest data.
type Info struct {
	Format      string      `json:"format"`
	Subformat   string      `json:"subformat,omitempty"`
	VirtualSize int64       `json:"virtual-size"`
	ClusterSize int64       `json:"cluster-size,omitempty"`
	Encrypted   string      `json:"encrypted,omitempty"` // method by name
	References  []Reference `json:"references,omitempty"`
	Properties  []Property  `json:"properties,omitempty"`
	Snapshots   []Snapshot  `json:"snapshots,omitempty"`
	Bitmaps     []Bitmap    `json:"bitmaps,omitempty"`
	Problems    []string    `json:"problems,omitempty"` // readable all the same
}

// A Property is one format-specific fact, in the format's own words.
type Property struct {
	Name  string `json:"name"`
	Value any    `json:"value"` // string, bool or int64
}

// A Snapshot is an internal snapshot.
type Snapshot struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Time        time.Time `json:"time"`
	VMStateSize int64     `json:"vm-state-size"`
	VirtualSize int64     `json:"virtual-size"`
}

// A Bitmap is a persistent dirty bitmap.
type Bitmap struct {
	Name        string   `json:"name"`
	Granularity int64    `json:"granularity"` // bytes a bit covers
	Flags       []string `json:"flags,omitempty"`
}

// A Describer is an image that has an Info.
type Describer interface{ Info() Info }

// A Severity ranks what a check found.
type Severity string

const (
	Leak       Severity = "leak"       // space that nothing uses: harmless
	Corruption Severity = "corruption" // a rule of the format is broken
)

// A Finding is one thing a check found.
type Finding struct {
	Severity Severity `json:"severity"`
	Off      int64    `json:"offset"` // in the file, or -1
	Field    string   `json:"field"`
	Detail   string   `json:"detail"`
}

// A CheckReport is the result of checking the metadata of one file. Findings
// holds at most MaxFindings; the counts are complete.
type CheckReport struct {
	Findings           []Finding `json:"findings,omitempty"`
	Corruptions        int64     `json:"corruptions"`
	Leaks              int64     `json:"leaks"`
	TotalClusters      int64     `json:"total-clusters,omitempty"`
	AllocatedClusters  int64     `json:"allocated-clusters,omitempty"`
	CompressedClusters int64     `json:"compressed-clusters,omitempty"`
	ImageEnd           int64     `json:"image-end-offset,omitempty"` // file bytes in use
}

// MaxFindings bounds the findings a report keeps.
const MaxFindings = 1000

// Add counts a finding, and keeps it while there is room.
func (r *CheckReport) Add(f Finding) {
	if f.Severity == Leak {
		r.Leaks++
	} else {
		r.Corruptions++
	}
	if len(r.Findings) < MaxFindings {
		r.Findings = append(r.Findings, f)
	}
}

// A Checker is an image whose metadata can be checked as a whole.
type Checker interface {
	// Check reads all metadata of this file (not of its backing files). The
	// error is for what stopped the check, not for what it found.
	Check() (*CheckReport, error)
}
