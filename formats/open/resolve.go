package open

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	"imgmaint/formats"
)

// maxChain bounds the files of one chain. Chains of backups and snapshots
// that users have are below 40; qemu itself gives up at about 200.
const maxChain = 64

// resolve opens what an image in folder dir of the root refers to, within the
// root. Names are a stranger's: only plain relative names, or absolute ones
// that lie in the root, are looked up, through os.Root, which follows no link
// out of it.
func (m *Image) resolve(format, dir string, ref formats.Reference) (formats.Image, error) {
	if len(m.chain) >= maxChain {
		return nil, formats.Limit(format, -1, string(ref.Kind), "more than %d files in a chain", maxChain)
	}
	name, ok := m.localName(dir, ref.Name, format)
	if !ok {
		return nil, formats.Unsupported(format, -1, string(ref.Kind), "%q is not a file name within the backing folder", ref.Name)
	}
	f, size, err := openHost(m.root.OpenFile, name)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		f.Close()
		if err == nil {
			err = formats.Unsupported(format, -1, string(ref.Kind), "%q is not a regular file", ref.Name)
		}
		return nil, err
	}
	for _, other := range m.chain {
		if ofi, err := other.Stat(); err == nil && os.SameFile(fi, ofi) {
			f.Close()
			return nil, formats.Corrupt(format, -1, string(ref.Kind), "%q is already part of the chain", ref.Name)
		}
	}
	m.chain = append(m.chain, f)
	o := DiskOptions{Format: ref.Format}
	if ref.Kind == formats.RefData {
		o.Format = "raw"
	}
	img, _, err := m.open(f, size, path.Dir(name), o)
	return img, err
}

// localName turns the name in a reference into a name within the root.
func (m *Image) localName(dir, name, format string) (string, bool) {
	if format == "vhd" { // locators of Windows
		name = strings.ReplaceAll(name, `\`, "/")
	}
	if name == "" || strings.ContainsAny(name, "\x00\\") {
		return "", false
	}
	if i := strings.IndexByte(name, ':'); i >= 0 && !strings.Contains(name[:i], "/") {
		return "", false // protocol, json: or drive letter
	}
	for elem := range strings.SplitSeq(name, "/") {
		if elem == ".." {
			return "", false
		}
	}
	if path.IsAbs(name) {
		root, err := realPath(m.root.Name())
		if err != nil {
			return "", false
		}
		rel, err := filepath.Rel(root, filepath.FromSlash(name))
		if err != nil {
			return "", false
		}
		name, dir = filepath.ToSlash(rel), "."
	}
	name = path.Join(dir, name)
	return name, filepath.IsLocal(filepath.FromSlash(name))
}
