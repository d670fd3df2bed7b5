package inspect

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"imgmaint/formats"
)

const (
	// maxSections bounds the sections of an EFI program; a unified kernel
	// image has about ten.
	maxSections = 96
	// maxEFI bounds the EFI programs that are listed.
	maxEFI = 200
)

// A Kernel is a kernel that can be booted, or modules whose kernel is
// missing.
type Kernel struct {
	Path         string `json:"path,omitempty"`
	Version      string `json:"version"`          // by the file name
	Banner       string `json:"banner,omitempty"` // version string in the image
	Architecture string `json:"architecture,omitempty"`
	Initrd       string `json:"initrd,omitempty"`
	Modules      bool   `json:"modules"` // /lib/modules/VERSION is there
	Unified      bool   `json:"unified,omitempty"`
}

// A BootLoader is a boot loader that was found.
type BootLoader struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`             // bios or efi, or config for a file that sets one up
	Where  string `json:"where"`            // file, or place on the disk
	Volume string `json:"volume,omitempty"` // for files on an EFI system partition
}

// A BootEntry is an entry of the Boot Loader Specification.
type BootEntry struct {
	File    string   `json:"file"`
	Title   string   `json:"title,omitempty"`
	Version string   `json:"version,omitempty"`
	Linux   string   `json:"linux,omitempty"`
	Initrd  []string `json:"initrd,omitempty"`
	Options string   `json:"options,omitempty"`
}

func sortBootLoaders(l []BootLoader) {
	sortedBy(l, func(b BootLoader) string { return b.Name + "\x00" + b.Kind + "\x00" + b.Volume + "\x00" + b.Where })
}

func collectKernels(c *collection) error {
	byVersion := map[string]bool{}
	modules := map[string]bool{}
	moduleDir := "usr/lib/modules"
	if !c.exists(moduleDir) {
		moduleDir = "lib/modules"
	}
	for _, v := range c.list(moduleDir) {
		if c.exists(moduleDir + "/" + v + "/modules.dep") {
			modules[v] = true
		}
	}
	files := c.list("boot")
	add := func(name, version string) {
		k := Kernel{Path: "/" + name, Version: value(version), Modules: modules[version]}
		if err := c.kernelImage(name, &k); err != nil {
			c.rep.problem("/"+name, err)
		}
		for _, i := range []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version, "initramfs-" + version} {
			if slices.Contains(files, i) {
				k.Initrd = value("/boot/" + i)
				break
			}
		}
		byVersion[version] = true
		c.it.Kernels = append(c.it.Kernels, k)
	}
	for _, f := range files {
		for _, prefix := range []string{"vmlinuz-", "vmlinux-", "Image-", "kernel-", "bzImage-"} {
			if v, ok := strings.CutPrefix(f, prefix); ok && v != "" {
				if fi, err := c.Stat("boot/" + f); err == nil && fi.Mode().IsRegular() {
					add("boot/"+f, v)
				} else if err != nil && !absent(err) {
					c.rep.problem("/boot/"+f, err)
				}
				break
			}
		}
	}
	for _, v := range sortedKeys(modules) {
		if byVersion[v] {
			continue
		}
		if name := moduleDir + "/" + v + "/vmlinuz"; c.exists(name) {
			add(name, v)
			continue
		}
		c.it.Kernels = append(c.it.Kernels, Kernel{Version: value(v), Modules: true})
	}
	return nil
}

func sortedKeys(m map[string]bool) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// kernelImage reads the header of a kernel: the x86 boot protocol, or that
// of arm64 and RISC-V, all of which are EFI programs too.
func (c *collection) kernelImage(name string, k *Kernel) error {
	f, err := c.openRegular(name)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return err
	}
	k.Banner, k.Architecture = kernelHeader(head[:n])
	return nil
}

// kernelHeader returns the version string and the architecture of a kernel
// by its first 64 KiB. Documentation/arch/x86/boot.rst: the header's magic
// "HdrS" at 0x202, kernel_version, u16 at 0x20e, relative to 0x200.
func kernelHeader(b []byte) (banner, arch string) {
	if len(b) > 0x210 && string(b[0x202:0x206]) == "HdrS" {
		if at := int(binary.LittleEndian.Uint16(b[0x20e:])); at != 0 && at+0x200 < len(b) {
			s, _, _ := strings.Cut(string(b[at+0x200:min(len(b), at+0x200+512)]), "\x00")
			banner = value(s)
		}
	}
	if a := peArch(b); a != "" {
		return banner, a
	}
	switch {
	case len(b) > 64 && string(b[56:60]) == "ARM\x64":
		return banner, "arm64"
	case len(b) > 64 && string(b[56:60]) == "RSC\x05":
		return banner, "riscv64"
	}
	return banner, elfArch(b[:min(len(b), 64)])
}

// peHeader is the offset of the COFF header in a PE program, or -1.
func peHeader(b []byte) int {
	if len(b) < 64 || string(b[:2]) != "MZ" {
		return -1
	}
	at := int64(binary.LittleEndian.Uint32(b[60:])) // e_lfanew
	if at+24 > int64(len(b)) || string(b[at:at+4]) != "PE\x00\x00" {
		return -1
	}
	return int(at) + 4
}

func peArch(b []byte) string {
	at := peHeader(b)
	if at < 0 {
		return ""
	}
	switch binary.LittleEndian.Uint16(b[at:]) {
	case 0x8664:
		return "amd64"
	case 0x14c:
		return "i386"
	case 0xaa64:
		return "arm64"
	case 0x1c2, 0x1c4:
		return "armhf"
	case 0x5064:
		return "riscv64"
	case 0x6264:
		return "loong64"
	}
	return ""
}

// peSections returns the small sections of the PE program f by name: those
// that describe a unified kernel image.
func peSections(f io.ReaderAt, size int64) (map[string]string, error) {
	head := make([]byte, min(size, 64<<10))
	if n, err := f.ReadAt(head, 0); n < len(head) {
		return nil, err
	}
	at := peHeader(head)
	if at < 0 {
		return nil, nil
	}
	n := int(binary.LittleEndian.Uint16(head[at+2:]))
	table := at + 20 + int(binary.LittleEndian.Uint16(head[at+16:]))
	if n > maxSections || table+40*n > len(head) {
		return nil, fmt.Errorf("%w: %d sections", formats.ErrCorrupt, n)
	}
	out := map[string]string{}
	for i := range n {
		s := head[table+40*i:][:40]
		name := strings.TrimRight(string(s[:8]), "\x00")
		length, off := int64(binary.LittleEndian.Uint32(s[8:])), int64(binary.LittleEndian.Uint32(s[20:]))
		length = min(length, int64(binary.LittleEndian.Uint32(s[16:])))
		out[name] = ""
		switch name {
		case ".osrel", ".uname", ".cmdline", ".sbat":
		default:
			continue
		}
		if length > maxSmall || off > size || length > size-off {
			return nil, fmt.Errorf("%w: section %s of %d bytes at %d", formats.ErrCorrupt, name, length, off)
		}
		b := make([]byte, length)
		if n, err := f.ReadAt(b, off); n < len(b) {
			return nil, err
		}
		out[name] = strings.TrimRight(string(b), "\x00\n")
	}
	return out, nil
}

// collectBoot finds what configures boot loaders in the root and in /boot.
func collectBoot(c *collection) error {
	for _, f := range []struct{ name, loader string }{
		{"boot/grub/grub.cfg", "grub"}, {"boot/grub2/grub.cfg", "grub"}, {"boot/grub/menu.lst", "grub-legacy"}, {"boot/grub/grub.conf", "grub-legacy"},
		{"boot/extlinux/extlinux.conf", "extlinux"}, {"boot/extlinux.conf", "extlinux"}, {"extlinux.conf", "extlinux"}, {"boot/syslinux/syslinux.cfg", "syslinux"},
		{"etc/lilo.conf", "lilo"}, {"boot/loader/loader.conf", "systemd-boot"}, {"etc/zipl.conf", "zipl"}, {"boot/limine.conf", "limine"},
	} {
		if fi, err := c.Stat(f.name); err == nil && fi.Mode().IsRegular() {
			c.it.BootLoaders = append(c.it.BootLoaders, BootLoader{Name: f.loader, Kind: "config", Where: "/" + f.name})
		} else if err != nil {
			c.failed(f.name, err)
		}
	}
	c.bootEntries(c.Root, "", "boot/loader/entries")
	sortBootLoaders(c.it.BootLoaders)
	return nil
}

// bootEntries reads the entries of the Boot Loader Specification in dir.
func (c *collection) bootEntries(r *Root, where, dir string) {
	for _, n := range listDir(c.rep, r, where, dir) {
		if !strings.HasSuffix(n, ".conf") {
			continue
		}
		b, err := r.Read(path.Join(dir, n), maxSmall)
		if err != nil {
			c.rep.problem(where+"/"+path.Join(dir, n), err)
			continue
		}
		e := BootEntry{File: value(where + "/" + path.Join(dir, n))}
		for line := range strings.SplitSeq(string(b), "\n") {
			key, v, _ := strings.Cut(strings.TrimSpace(line), " ")
			v = value(strings.TrimSpace(v))
			switch key {
			case "title":
				e.Title = v
			case "version":
				e.Version = v
			case "linux", "uki", "efi":
				e.Linux = v
			case "initrd":
				e.Initrd = append(e.Initrd, v)
			case "options":
				e.Options = strings.TrimSpace(e.Options + " " + v)
			}
		}
		c.it.BootEntries = append(c.it.BootEntries, e)
	}
}

// collectEFI looks at the EFI system partitions; in a tree without disk, at
// where they are mounted.
func collectEFI(c *collection) error {
	esps := c.guest.esps
	if len(esps) == 0 {
		for _, dir := range []string{"boot/efi", "efi", "boot"} {
			if fi, err := c.Stat(dir + "/EFI"); err == nil && fi.IsDir() {
				c.efi(c.Root, "", dir+"/")
				break
			}
		}
		sortBootLoaders(c.it.BootLoaders)
		return nil
	}
	for _, e := range esps {
		c.efi(e.root, e.where, "")
		c.bootEntries(e.root, e.where+":", "loader/entries")
		if _, err := e.root.Stat("loader/loader.conf"); err == nil {
			c.it.BootLoaders = append(c.it.BootLoaders, BootLoader{Name: "systemd-boot", Kind: "config", Where: "/loader/loader.conf", Volume: e.where})
		}
	}
	sortBootLoaders(c.it.BootLoaders)
	return nil
}

func (c *collection) efi(r *Root, where, prefix string) {
	label := where
	if label != "" {
		label += ":"
	}
	count := 0
	for _, vendor := range listDir(c.rep, r, label, prefix+"EFI") {
		dir := prefix + "EFI/" + vendor
		if fi, err := r.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		for _, n := range listDir(c.rep, r, label, dir) {
			name := dir + "/" + n
			if !strings.HasSuffix(strings.ToLower(n), ".efi") {
				continue
			}
			if count++; count > maxEFI {
				c.rep.problem(label+"/"+prefix+"EFI", fmt.Errorf("%w: more than %d programs", formats.ErrLimit, maxEFI))
				return
			}
			if err := c.efiProgram(r, where, name, n); err != nil {
				c.rep.problem(label+"/"+name, err)
			}
		}
	}
}

func (c *collection) efiProgram(r *Root, where, name, base string) error {
	f, err := r.openRegular(name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	ra, ok := f.(io.ReaderAt)
	if !ok {
		return fmt.Errorf("%s: %w", name, fs.ErrInvalid)
	}
	sec, err := peSections(ra, fi.Size())
	if err != nil {
		return err
	}
	if _, ok := sec[".linux"]; ok {
		head := make([]byte, min(fi.Size(), 64<<10))
		if n, err := ra.ReadAt(head, 0); n < len(head) {
			return err
		}
		k := Kernel{Path: "/" + name, Version: value(sec[".uname"]), Architecture: peArch(head), Unified: true}
		if _, ok := sec[".initrd"]; ok {
			k.Initrd = "(unified)"
		}
		c.it.Kernels = append(c.it.Kernels, k)
		return nil
	}
	loader := "other"
	low := strings.ToLower(base)
	for _, g := range []struct{ part, name string }{
		{"grub", "grub"}, {"shim", "shim"}, {"mm", "mok-manager"}, {"fb", "fallback"}, {"systemd-boot", "systemd-boot"}, {"bootmgfw", "windows"}, {"refind", "refind"}, {"limine", "limine"}, {"boot", "removable"},
	} {
		if strings.HasPrefix(low, g.part) {
			loader = g.name
			break
		}
	}
	if strings.Contains(sec[".sbat"], "systemd-boot") {
		loader = "systemd-boot"
	} else if loader == "removable" {
		switch s := sec[".sbat"]; {
		case strings.Contains(s, "\ngrub,"):
			loader = "grub"
		case strings.Contains(s, "\nshim,"):
			loader = "shim"
		}
	}
	c.it.BootLoaders = append(c.it.BootLoaders, BootLoader{Name: loader, Kind: "efi", Where: value("/" + name), Volume: where})
	return nil
}
