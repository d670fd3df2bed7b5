package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"imgmaint/formats"
)

// A guest is a system that was found.
type guest struct {
	root *Root
	// esps are the EFI system partitions, whether mounted or not.
	esps []esp
}

type esp struct {
	where string
	root  *Root
}

// Tree opens what the user of ls, cat and tar-out means: the file system of
// one partition, or with partition 0 the system's tree with all that its
// fstab mounts. A disk without a system is its only readable file system.
// Problems are what could not be mounted.
func Tree(ctx context.Context, img formats.Image, partition int) (*Root, []Problem, error) {
	d, err := layout(ctx, img)
	if err != nil {
		return nil, nil, err
	}
	if partition != 0 {
		for _, v := range d.vols {
			if v.Index == partition {
				switch {
				case v.err != nil:
					return nil, nil, fmt.Errorf("%s: %w", v.name(), v.err)
				case v.fsys == nil && v.content.Type != "":
					return nil, nil, fmt.Errorf("%s: %s: %w", v.name(), v.content.Type, errors.ErrUnsupported)
				case v.fsys == nil:
					return nil, nil, fmt.Errorf("%s: %w", v.name(), formats.ErrUnknown)
				}
				return NewRoot(v.fsys), nil, nil
			}
		}
		return nil, nil, fmt.Errorf("partition %d: %w", partition, fs.ErrNotExist)
	}
	if g := d.guest(); g != nil {
		return g.root, d.rep.Problems, nil
	}
	var only *volume
	for _, v := range d.vols {
		if v.fsys == nil {
			continue
		}
		if only != nil {
			return nil, nil, fmt.Errorf("no operating system, and several file systems: name a partition: %w", formats.ErrUnknown)
		}
		only = v
	}
	if only != nil {
		return NewRoot(only.fsys), d.rep.Problems, nil
	}
	for _, v := range d.vols {
		if v.err != nil {
			return nil, nil, fmt.Errorf("%s: %w", v.name(), v.err)
		}
		if v.content.Type != "" {
			return nil, nil, fmt.Errorf("%s: %s: %w", v.name(), v.content.Type, errors.ErrUnsupported)
		}
	}
	return nil, nil, fmt.Errorf("no file system: %w", formats.ErrUnknown)
}

// score says how much the tree looks like the root of a system; 0 is not at
// all.
func score(r *Root) (n int) {
	for name, points := range map[string]int{
		"etc/os-release": 8, "usr/lib/os-release": 8, "etc/lsb-release": 4, "etc/debian_version": 4, "etc/redhat-release": 4,
		"etc/centos-release": 4, "etc/alpine-release": 4, "etc/SuSE-release": 4, "etc/arch-release": 4, "etc/gentoo-release": 4,
		"etc/fstab": 1, "var/lib/dpkg/status": 2, "var/lib/rpm": 2, "lib/apk/db/installed": 2, "sbin/init": 1,
	} {
		// A link is enough: what it leads to may be on another partition.
		if _, err := r.Lstat(name); err == nil {
			n += points
		}
	}
	// A root whose /usr is elsewhere has a bare etc.
	if n > 0 && n < 4 {
		if fi, err := r.Stat("etc"); err != nil || !fi.IsDir() {
			return 0
		}
	}
	return n
}

// guest finds the root file system and mounts the others as its fstab says;
// nil when there is none.
func (d *disk) guest() *guest {
	var best *volume
	high := 0
	var others []string
	for _, v := range d.vols {
		if v.fsys == nil || v.content.Type == "vfat" {
			continue
		}
		n := score(NewRoot(v.fsys))
		if n >= 4 {
			others = append(others, v.name())
		}
		if n > high {
			high, best = n, v
		}
	}
	if best == nil {
		return nil
	}
	if len(others) > 1 {
		d.rep.problem("disk", fmt.Errorf("several root file systems (%s): %s is used", strings.Join(others, ", "), best.name()))
	}
	g := &guest{root: NewRoot(best.fsys)}
	d.mounted(best, "/")
	d.mountAll(g, best)
	for _, v := range d.vols {
		if v.content.Type == "vfat" && v.fsys != nil {
			where := v.name()
			if v.Index == 0 || v.Type == espType || v.Type == "0xef" || hasEFI(v.fsys) {
				g.esps = append(g.esps, esp{where, NewRoot(v.fsys)})
			}
		}
	}
	return g
}

func hasEFI(fsys fs.ReadLinkFS) bool {
	fi, err := fsys.Lstat("EFI")
	return err == nil && fi.IsDir()
}

func (d *disk) mounted(v *volume, dir string) {
	if v.rng >= 0 {
		d.rep.Disk.Ranges[v.rng].Mount = dir
	}
}

// mountAll mounts what the guest's fstab names.
func (d *disk) mountAll(g *guest, root *volume) {
	entries, err := readFstab(g.root)
	if err != nil {
		return // the collector of fstab reports it
	}
	// Parents first.
	slices.SortStableFunc(entries, func(a, b FstabEntry) int { return cmp.Compare(depth(GuestPath(a.Dir)), depth(GuestPath(b.Dir))) })
	for _, e := range entries {
		if !e.mountsVolume() {
			continue
		}
		v, why := d.volumeOf(e.Spec)
		switch {
		case v == nil && e.option("nofail"):
			continue // the guest does without it as well
		case v == nil:
			d.rep.problem("/etc/fstab", fmt.Errorf("%s for %s: %s", e.Spec, e.Dir, why))
			continue
		case v == root:
			continue
		case v.fsys == nil:
			d.rep.problem("/etc/fstab", fmt.Errorf("%s for %s: %s is not read: what is in %s is not known", e.Spec, e.Dir, v.name(), e.Dir))
			continue
		}
		if err := g.root.Mount(GuestPath(e.Dir), v.fsys); err != nil {
			d.rep.problem("/etc/fstab", fmt.Errorf("%s for %s: %s", e.Spec, e.Dir, reason(err)))
			continue
		}
		d.mounted(v, e.Dir)
	}
}

// mountsVolume reports whether the entry mounts a block device over a folder
// other than the root.
func (e *FstabEntry) mountsVolume() bool {
	if !strings.HasPrefix(e.Dir, "/") || GuestPath(e.Dir) == "." {
		return false
	}
	switch e.Type {
	case "swap", "proc", "sysfs", "tmpfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "overlay", "nfs", "nfs4", "cifs", "fuse", "none", "9p", "virtiofs", "efivarfs", "securityfs", "debugfs":
		return false
	}
	if e.option("bind") || e.option("rbind") || e.option("noauto") || isRemovable(e.Spec) {
		return false
	}
	return strings.Contains(e.Spec, "=") || strings.HasPrefix(e.Spec, "/dev/")
}

func (e *FstabEntry) option(name string) bool {
	for o := range strings.SplitSeq(e.Options, ",") {
		if o == name {
			return true
		}
	}
	return false
}

func isRemovable(spec string) bool {
	return strings.HasPrefix(spec, "/dev/sr") || strings.HasPrefix(spec, "/dev/cdrom") || strings.HasPrefix(spec, "/dev/fd")
}

// devName takes apart the names that Linux gives to partitions of its first
// disk: sda1, vda1, xvda1, hda1, nvme0n1p1, mmcblk0p1.
var devName = regexp.MustCompile(`^/dev/(?:(?:s|v|xv|h)d([a-z]+)(\d*)|(?:nvme(\d+)n1|mmcblk(\d+))(?:p(\d+))?)$`)

// volumeOf finds the volume a device specification of fstab names, or says
// why there is none.
func (d *disk) volumeOf(spec string) (*volume, string) {
	key, value, ok := strings.Cut(spec, "=")
	value = strings.Trim(value, `"`)
	if !ok {
		if by, name, found := strings.Cut(strings.TrimPrefix(spec, "/dev/disk/by-"), "/"); found && strings.HasPrefix(spec, "/dev/disk/by-") {
			key, value, ok = strings.ToUpper(by), unescapeUdev(name), true
		}
	}
	if ok {
		for _, v := range d.vols {
			label, id := v.content.Label, v.content.UUID
			if v.fsys != nil {
				u := v.fsys.Usage()
				label, id = u.Label, u.UUID
			}
			match := false
			switch key {
			case "UUID":
				match = id != "" && strings.EqualFold(id, value)
			case "LABEL":
				match = label != "" && label == value
			case "PARTUUID":
				match = v.UUID != "" && strings.EqualFold(v.UUID, value)
			case "PARTLABEL":
				match = v.Name != "" && v.Name == value
			}
			if match {
				return v, ""
			}
		}
		return nil, "no partition of this disk"
	}
	m := devName.FindStringSubmatch(spec)
	if m == nil {
		return nil, "a device name that cannot be told"
	}
	if m[1] != "" && m[1] != "a" || m[3] != "" && m[3] != "0" || m[4] != "" && m[4] != "0" {
		return nil, "on another disk"
	}
	n, _ := strconv.Atoi(m[2] + m[5])
	for _, v := range d.vols {
		// A Xen guest calls a disk without a table xvda1.
		if v.Index == n || v.Index == 0 {
			return v, ""
		}
	}
	return nil, "no partition of this disk"
}

// unescapeUdev undoes \x20 and the like in links of /dev/disk.
func unescapeUdev(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
