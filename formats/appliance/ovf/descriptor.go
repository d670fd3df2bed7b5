package ovf

import (
	"compress/gzip"
	"errors"
	"io"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/gzindex"
)

// Descriptor implements formats.Package. Machines are in their default
// configuration; texts are as they stand in the descriptor.
func (p *Package) Descriptor() *formats.Descriptor {
	d := p.env.Describe()
	for i := range d.Disks {
		disk := p.env.Disk(d.Disks[i].ID)
		for k := range p.env.Files {
			if p.env.Files[k].ID == disk.FileRef && len(p.parts[k]) > 0 {
				d.Disks[i].Member = p.parts[k][0]
				if p.env.Files[k].ChunkSize > 0 {
					d.Disks[i].Member = strings.TrimSuffix(p.parts[k][0], ".000000000")
				}
				break
			}
		}
	}
	for _, m := range p.members {
		d.Members = append(d.Members, formats.Member{Name: m.name, Size: m.size, Off: m.off})
	}
	for _, f := range p.Check(nil) {
		d.Problems = append(d.Problems, f.String())
	}
	return d
}

// Describe puts what the descriptor says in the terms all packages share.
// Without a package there are no members, and the members of disks are as
// ovf:href has them.
func (e *Envelope) Describe() *formats.Descriptor {
	config := e.DefaultConfiguration()
	d := &formats.Descriptor{Format: Name, Version: e.Version}
	if e.Content != nil {
		d.Name = e.Content.Name.Value
		if d.Name == "" {
			d.Name = e.Content.ID
		}
		if e.Content.Collection && len(e.Content.Annotations) > 0 {
			d.Description = e.Content.Annotations[0].Value
		}
	}
	files := make(map[string]*File, len(e.Files))
	for i := range e.Files {
		files[e.Files[i].ID] = &e.Files[i]
	}
	for i := range e.Disks {
		k := &e.Disks[i]
		out := formats.PackageDisk{ID: k.ID, Format: k.Format, Size: max(k.Capacity, 0), Role: "disk", Parent: k.ParentRef}
		if f := files[k.FileRef]; f != nil {
			literal, decoded := HrefName(f.Href)
			if out.Member = decoded; decoded == "" {
				out.Member = literal
			}
			out.Compression, out.ChunkSize = "none", f.ChunkSize
			if f.Compression != "" {
				out.Compression = f.Compression
			}
		}
		d.Disks = append(d.Disks, out)
	}
	for _, s := range e.Machines() {
		d.Machines = append(d.Machines, s.machine(config))
	}
	if e.Content != nil && !e.Content.Collection && len(d.Machines) == 1 {
		d.Description = d.Machines[0].Description
	}
	return d
}

// DefaultConfiguration is the configuration that holds when nobody chooses:
// the default one, else the first, "" when there are none (section 9.8).
func (e *Envelope) DefaultConfiguration() string {
	for _, c := range e.Configurations {
		if c.Default {
			return c.ID
		}
	}
	if len(e.Configurations) > 0 {
		return e.Configurations[0].ID
	}
	return ""
}

func (s *System) machine(config string) formats.Machine {
	m := formats.Machine{ID: s.ID, Name: s.Name.Value}
	if len(s.Annotations) > 0 {
		m.Description = s.Annotations[0].Value
	}
	if s.OS != nil {
		m.OS = s.OS.Description.Value
		if m.OS == "" {
			m.OS = OSName(s.OS.ID)
		}
		switch name := strings.ToLower(OSName(s.OS.ID) + " " + s.OS.VMware + " " + s.OS.VBox); {
		case strings.Contains(name, "arm64"), strings.Contains(name, "arm-64"), strings.Contains(name, "arm-other-64"):
			m.Arch = "arm64"
		case strings.Contains(name, "64"):
			m.Arch = "amd64"
		}
	}
	if len(s.Hardware) > 0 {
		h := &s.Hardware[0]
		m.CPUs, m.Memory = h.CPUs(config), h.Memory(config)
		m.Disks, m.Networks = h.DiskIDs(config), h.NetworkNames(config)
	}
	for i := range s.Products {
		p := &s.Products[i]
		if i == 0 {
			m.Product, m.Vendor, m.Version, m.FullVersion = p.Product.Value, p.Vendor.Value, p.Version, p.FullVersion
		}
		for j := range p.Properties {
			x := &p.Properties[j]
			m.Properties = append(m.Properties, formats.MachineProperty{Key: p.FullKey(x.Key), Type: x.Type, Value: x.Default(config),
				Label: x.Label.Value, Description: x.Description.Value, Settable: x.Configurable, Password: x.Password})
		}
	}
	for _, l := range s.Licences {
		m.Licences = append(m.Licences, l.Value)
	}
	return m
}

// Decode opens a file of References from front to back with its compression
// undone. More than limit bytes are an error of class ErrLimit; a damaged
// stream is ErrCorrupt.
func (p *Package) Decode(fileID string, limit int64) (io.ReadCloser, error) {
	b, err := p.OpenFile(fileID)
	if err != nil {
		return nil, err
	}
	d := &decoder{blob: b, limit: limit}
	d.r = io.NewSectionReader(b, 0, b.Size())
	switch f := p.env.File(fileID); f.Compression {
	case "":
	case "gzip":
		z, err := gzip.NewReader(d.r)
		if err != nil {
			b.Close()
			return nil, gzipError(err)
		}
		d.r = z
	default:
		b.Close()
		return nil, formats.Unsupported(Name, f.off, "File@compression", "%q", clip(f.Compression))
	}
	return d, nil
}

// A FileImage is a file of References at any offset, its compression undone.
// ReadAt and ExtentAt are safe for concurrent use.
type FileImage struct {
	formats.Image
	blob *Blob
}

// Close closes the members.
func (m *FileImage) Close() error { return m.blob.Close() }

// OpenImage opens a file of References at any offset: chunks are joined, and
// a compressed file is read once, to index it. Nothing is unpacked. More than
// limit bytes are an error of class ErrLimit.
func (p *Package) OpenImage(fileID string, limit int64) (*FileImage, error) {
	b, err := p.OpenFile(fileID)
	if err != nil {
		return nil, err
	}
	m := &FileImage{blob: b, Image: b}
	switch f := p.env.File(fileID); f.Compression {
	case "":
		if b.Size() > limit {
			err = formats.Limit(Name, f.off, "file", "%d bytes, at most %d", b.Size(), limit)
		}
	case "gzip":
		m.Image, err = gzindex.Open(b, b.Size(), &gzindex.Options{Format: Name, MaxSize: max(limit, 1)})
	default:
		err = formats.Unsupported(Name, f.off, "File@compression", "%q", clip(f.Compression))
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return m, nil
}

type decoder struct {
	blob  *Blob
	r     io.Reader
	pos   int64
	limit int64
}

func (d *decoder) Read(p []byte) (int, error) {
	if left := d.limit - d.pos; int64(len(p)) > left { // one more shows that there is more
		p = p[:min(int64(len(p)), left+1)]
	}
	n, err := d.r.Read(p)
	d.pos += int64(n)
	if d.pos > d.limit {
		return 0, formats.Limit(Name, -1, "file", "more than %d bytes when decompressed", d.limit)
	}
	if err != nil && err != io.EOF {
		err = gzipError(err)
	}
	return n, err
}

func (d *decoder) Close() error { return d.blob.Close() }

// gzipError gives errors of compress/gzip their class.
func gzipError(err error) error {
	if errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return formats.Corrupt(Name, -1, "gzip", "%v", err)
	}
	var ce interface{ Error() string }
	if errors.As(err, &ce) && strings.HasPrefix(ce.Error(), "flate:") {
		return formats.Corrupt(Name, -1, "gzip", "%v", err)
	}
	return formats.At(Name, -1, "gzip", err)
}

// LoadStrings reads the external string bundles that the descriptor refers
// to, so that Envelope.Localise finds their messages. It must not run while
// the envelope is in use.
func (p *Package) LoadStrings() error {
	for i := range p.env.Strings {
		b := &p.env.Strings[i]
		if b.FileRef == "" || len(b.Messages) > 0 {
			continue
		}
		r, err := p.Decode(b.FileRef, maxBundle)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return err
		}
		ext, err := ParseBundle(text)
		if err != nil {
			return err
		}
		if b.Messages = ext.Messages; b.Lang == "" {
			b.Lang = ext.Lang
		}
	}
	return nil
}
