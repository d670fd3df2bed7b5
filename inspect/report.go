// Package inspect says what is on a disk: its partition table, what each
// byte range was taken for, and which system is installed, by reading named
// files of the guest. It writes nothing and runs nothing.
package inspect

import (
	"errors"
	"io/fs"

	"imgmaint/formats"
)

// A Report is what Disk and FS found. It has no time of making: the same
// input gives the same report.
type Report struct {
	// Container is for the caller to fill: what the image file says of
	// itself.
	Container *formats.Info `json:"container,omitempty"`
	State     State         `json:"state"`
	Disk      *Layout       `json:"disk,omitempty"`
	Items     Items         `json:"items"`
	// Problems are what could not be read or understood. A report with
	// problems may be incomplete, and says where.
	Problems []Problem `json:"problems"`
	dropped  int       // problems beyond maxProblems
}

// A State sums up whether the image was understood.
type State string

// The states of a report.
const (
	// Understood: a system was found and its files were read.
	Understood State = "operating system"
	// NoSystem: everything on the disk was read, and there is no system.
	NoSystem State = "no operating system"
	// NotUnderstood: no system was found, and parts of the disk could not be
	// read. That there are no packages in the report says nothing.
	NotUnderstood State = "not understood"
)

// A Problem is one thing that was not read.
type Problem struct {
	Where string `json:"where"` // partition, file of the guest, or disk
	What  string `json:"what"`
}

// A Layout is what the bytes of a disk were taken for.
type Layout struct {
	Size  int64          `json:"size"`
	Table *formats.Table `json:"partition-table,omitempty"`
	// Ranges cover the disk from 0 to Size without gaps or overlaps.
	Ranges []Range `json:"ranges"`
}

// A RangeState says how far a range was understood.
type RangeState string

// The states of a range.
const (
	Read        RangeState = "read"
	Unsupported RangeState = "unsupported"
	Encrypted   RangeState = "encrypted"
	Empty       RangeState = "empty"
	Metadata    RangeState = "metadata"
)

// A Range is a run of bytes of one meaning.
type Range struct {
	Off       int64      `json:"offset"`
	Len       int64      `json:"size"`
	State     RangeState `json:"state"`
	Type      string     `json:"type"`
	Partition int        `json:"partition,omitempty"` // number; 0 outside of partitions
	Label     string     `json:"label,omitempty"`
	UUID      string     `json:"uuid,omitempty"`
	// Mount is the folder of the guest where it is mounted.
	Mount string         `json:"mount,omitempty"`
	Note  string         `json:"note,omitempty"`
	Usage *formats.Usage `json:"usage,omitempty"`
}

// Items are the facts found in the system.
type Items struct {
	OS              *OS              `json:"os,omitempty"`
	Architecture    string           `json:"architecture,omitempty"` // as dpkg names it
	Hostname        string           `json:"hostname,omitempty"`
	MachineID       string           `json:"machine-id,omitempty"` // absent, empty, uninitialized or set
	Init            string           `json:"init,omitempty"`
	Timezone        string           `json:"timezone,omitempty"`
	Locale          string           `json:"locale,omitempty"`
	Users           []string         `json:"users,omitempty"` // that can log in and are not the system's
	Fstab           []FstabEntry     `json:"fstab,omitempty"`
	Kernels         []Kernel         `json:"kernels,omitempty"`
	BootLoaders     []BootLoader     `json:"boot-loaders,omitempty"`
	BootEntries     []BootEntry      `json:"boot-entries,omitempty"`
	PackageManagers []PackageManager `json:"package-managers,omitempty"`
	Sources         []Source         `json:"sources,omitempty"`
	Packages        []Package        `json:"packages"`
}

// A PackageManager is a package database that was found.
type PackageManager struct {
	Name     string `json:"name"`
	Database string `json:"database"` // path in the guest
	State    string `json:"state"`    // read, or unsupported
	Packages int    `json:"packages,omitempty"`
}

// maxProblems bounds the problems of a report; the rest is counted.
const maxProblems = 1000

// problem adds a problem. What err says of a path is left out: where says it.
func (r *Report) problem(where string, err error) {
	if len(r.Problems) >= maxProblems {
		r.dropped++
		return
	}
	r.Problems = append(r.Problems, Problem{value(where), value(reason(err))})
}

// reason is the text of err without the path that Where says already.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) && pe == err {
		return pe.Err.Error()
	}
	return err.Error()
}
