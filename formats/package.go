package formats

import (
	"io"
	"io/fs"
)

// A Package is an opened appliance. Members are read through fs.FS under the
// names they have in the package; nothing is unpacked to the host. An opened
// member implements io.ReaderAt as well.
type Package interface {
	fs.FS
	io.Closer
	Descriptor() *Descriptor
}

// A Descriptor is what a package says about itself, in terms all package
// formats share. Everything in it is the package's word, checked for form
// only.
type Descriptor struct {
	Format      string        `json:"format"`            // xvm, xvm2 or ovf
	Version     string        `json:"version,omitempty"` // of the format
	Name        string        `json:"name,omitempty"`
	Description string        `json:"description,omitempty"`
	Machines    []Machine     `json:"machines,omitempty"`
	Disks       []PackageDisk `json:"disks"`
	Members     []Member      `json:"members"` // in the order of the package
	Problems    []string      `json:"problems,omitempty"`
}

// A Machine is one virtual machine of a package.
type Machine struct {
	ID          string            `json:"id"`
	Name        string            `json:"name,omitempty"`
	Description string            `json:"description,omitempty"`
	Product     string            `json:"product,omitempty"`
	Vendor      string            `json:"vendor,omitempty"`
	Version     string            `json:"version,omitempty"`
	FullVersion string            `json:"full-version,omitempty"`
	OS          string            `json:"os,omitempty"` // as the package names it
	Arch        string            `json:"arch,omitempty"`
	CPUs        int               `json:"cpus,omitempty"`
	Memory      int64             `json:"memory,omitempty"`   // bytes
	Disks       []string          `json:"disks,omitempty"`    // ids in Descriptor.Disks
	Networks    []string          `json:"networks,omitempty"` // names
	Properties  []MachineProperty `json:"properties,omitempty"`
	Licences    []string          `json:"licences,omitempty"` // texts to be accepted
}

// A MachineProperty is a setting the user of a package may give.
type MachineProperty struct {
	Key         string `json:"key"` // with class and instance, as class.key.instance
	Type        string `json:"type,omitempty"`
	Value       string `json:"value,omitempty"` // default
	Label       string `json:"label,omitempty"`
	Description string `json:"description,omitempty"`
	Settable    bool   `json:"settable"` // by the user
	Password    bool   `json:"password,omitempty"`
}

// A PackageDisk is a disk of a package.
type PackageDisk struct {
	ID          string `json:"id"`
	Member      string `json:"member,omitempty"`       // "" for a disk that starts empty
	Format      string `json:"format,omitempty"`       // raw, qcow2, vhd, vmdk; "" when undeclared
	Compression string `json:"compression,omitempty"`  // gzip or none
	ChunkSize   int64  `json:"chunk-size,omitempty"`   // bytes; the member is Member.000000000 and on
	Size        int64  `json:"virtual-size,omitempty"` // 0 when undeclared
	Role        string `json:"role,omitempty"`         // partition, disk, or "" when undeclared
	Device      string `json:"device,omitempty"`       // as the guest names it
	Parent      string `json:"parent,omitempty"`       // id of another disk
	SHA256      string `json:"sha256,omitempty"`       // of the decoded disk, declared
}

// A Member is a file of a package.
type Member struct {
	Name string `json:"name"`
	Size int64  `json:"size"`   // as stored
	Off  int64  `json:"offset"` // of its bytes in the package file, or -1 when it is a file of its own
}
