package formats

import (
	"io"
	"io/fs"
	"time"
)

// Stat is what fs.FileInfo.Sys returns for a file of any file system here.
type Stat struct {
	Ino          uint64
	Nlink        uint64
	UID, GID     uint32
	Major, Minor uint32 // of a device node
	Blocks       int64  // allocated, in bytes (not in 512-byte units)
	Atime, Ctime time.Time
	Btime        time.Time // zero when the file system keeps none
	Flags        uint32    // inode flags as the file system defines them

	// ReadXattrs reads the extended attributes in on-disk order, names with
	// their prefix ("security.selinux"). Nil when there are none to read.
	ReadXattrs func() ([]Xattr, error)
}

// An Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Xattrs reads the extended attributes; nil, nil when there are none.
func (s *Stat) Xattrs() ([]Xattr, error) {
	if s == nil || s.ReadXattrs == nil {
		return nil, nil
	}
	return s.ReadXattrs()
}

// An FS is a file system inside a disk. Names follow fs.ValidPath. Symbolic
// links are never followed: Open of a link is an error, Lstat and ReadLink
// answer for the link itself, and a link in the middle of a path is not a
// directory. Opened regular files implement File. All methods are safe for
// concurrent use.
type FS interface {
	fs.ReadLinkFS
	fs.ReadDirFS
	Usage() Usage
}

// A File is an opened regular file: a disk in its own right.
type File interface {
	fs.File
	io.ReaderAt
	io.Seeker
	Image
}

// Usage is how full a file system is, and how it names itself.
type Usage struct {
	Type       string   `json:"type"` // ext2, ext3, ext4, vfat
	Label      string   `json:"label,omitempty"`
	UUID       string   `json:"uuid,omitempty"`
	BlockSize  int64    `json:"block-size"`
	Size       int64    `json:"size"`
	Free       int64    `json:"free"`
	Inodes     int64    `json:"inodes,omitempty"`
	FreeInodes int64    `json:"free-inodes,omitempty"`
	Features   []string `json:"features,omitempty"`
	State      string   `json:"state,omitempty"` // clean, needs recovery, has errors
	Problems   []string `json:"problems,omitempty"`
}

// A Volume is a part of a disk that a partition table describes.
type Volume struct {
	Index    int    `json:"index"` // as the guest numbers it: sda1 is 1, logical ones from 5
	Off      int64  `json:"offset"`
	Len      int64  `json:"size"`
	Type     string `json:"type"` // GPT type GUID in lower case, or MBR type as 0x83
	TypeName string `json:"type-name,omitempty"`
	UUID     string `json:"uuid,omitempty"`
	Name     string `json:"name,omitempty"`
	Bootable bool   `json:"bootable,omitempty"`
}

// A Table is a partition table.
type Table struct {
	Scheme     string   `json:"scheme"` // gpt or mbr
	UUID       string   `json:"uuid,omitempty"`
	SectorSize int64    `json:"sector-size"`
	Volumes    []Volume `json:"volumes"` // by index
	Problems   []string `json:"problems,omitempty"`
}
