package open

import "imgmaint/formats/filesys/ext4"

// Names on disk are bytes, and those of fs.FS are valid UTF-8: file systems
// show bytes that are not UTF-8 as code points set aside for them.

// RawName returns the bytes of a name as they are on disk.
func RawName(name string) string {
	if raw, ok := ext4.UnescapeName(name); ok {
		return string(raw)
	}
	return name
}

// EscapeName returns the name by which a file system shows these bytes.
func EscapeName(raw string) string { return ext4.EscapeName([]byte(raw)) }
