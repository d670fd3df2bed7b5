package qcow2

import (
	"io"
	"slices"

	"imgmaint/formats"
)

// Describe is the Info of the image of size bytes in r. It opens nothing the
// image refers to, and answers for encrypted images and unknown features too.
func Describe(r io.ReaderAt, size int64) (formats.Info, error) {
	l, err := parse(r, size)
	if err != nil {
		return formats.Info{}, err
	}
	return l.Info(), nil
}

// Info implements formats.Describer.
func (l *layout) Info() formats.Info {
	info := formats.Info{
		Format:      Name,
		VirtualSize: int64(l.size),
		ClusterSize: l.clusterSize,
		Problems:    slices.Clone(l.problems),
	}
	switch l.crypt {
	case cryptAES:
		info.Encrypted = "aes"
	case cryptLUKS:
		info.Encrypted = "luks"
	}
	if l.backing.Name != "" {
		info.References = append(info.References, l.backing)
	}
	if l.incompatible&incompatDataFile != 0 {
		info.References = append(info.References, l.dataFile)
	}
	prop := func(name string, value any) {
		info.Properties = append(info.Properties, formats.Property{Name: name, Value: value})
	}
	compat, compression := "1.1", "zlib"
	if l.version == 2 {
		compat = "0.10"
	}
	if l.compression == compressionZstd {
		compression = "zstd"
	}
	prop("compat", compat)
	prop("compression type", compression)
	prop("refcount bits", int64(1)<<l.refcountOrder)
	if l.version >= 3 {
		prop("lazy refcounts", l.compatible&compatLazyRefcounts != 0)
		prop("corrupt", l.incompatible&incompatCorrupt != 0)
		prop("extended l2", l.incompatible&incompatExtendedL2 != 0)
	}
	if l.incompatible&incompatDataFile != 0 {
		prop("data file raw", l.autoclear&autoclearDataFileRaw != 0)
	}
	if l.incompatible&incompatDirty != 0 {
		info.Problems = append(info.Problems, "dirty: not closed by its last user; refcounts may be wrong, the disk is not affected")
	}
	if l.incompatible&incompatCorrupt != 0 {
		info.Problems = append(info.Problems, "corrupt: marked as corrupt by a program that used it")
	}
	if u := l.unknownFeatures(); u != 0 {
		info.Problems = append(info.Problems, "unknown incompatible features: "+l.featureList(u))
	}
	for i := range l.snapshots {
		info.Snapshots = append(info.Snapshots, l.snapshots[i].describe())
	}
	for i := range l.bitmapList {
		info.Bitmaps = append(info.Bitmaps, l.bitmapList[i].describe())
	}
	return info
}
