package ovf

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"imgmaint/internal/testimg"
)

// TestSealsFirst writes the manifest and the certificate next to the
// descriptor, from digests known before.
func TestSealsFirst(t *testing.T) {
	k := keys()
	root := issue(t, "root", k.ec, nil, nil)
	p := openOVA(t, smallOVA(t, []byte("disk"), []byte("{}"), nil))
	digests, err := p.Digests("SHA512", nil)
	if err != nil {
		t.Fatal(err)
	}
	opts := root.options("SHA256")
	opts.Algorithm, opts.Files = "SHA512", digests
	var out bytes.Buffer
	w, err := NewWriter(&out, "small.ovf", opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Repack(w, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := testimg.Run(t, "tar", "tf", testimg.WriteFile(t, "x.ova", out.Bytes())); got != "small.ovf\nsmall.mf\nsmall.cert\nsmall-1.vmdk\nsbom.json\n" {
		t.Errorf("tar t: %q", got)
	}
	r, err := openOVA(t, out.Bytes()).Verify(&VerifyOptions{Trust: TrustOptions{Roots: pool(root), Time: now}})
	if err != nil || r.Verdict != Verified || len(r.Findings) > 0 {
		t.Errorf("Verify = %+v, %v", r, err)
	}
	opts.Files = slices.Clone(digests)
	opts.Files[1].Digest = strings.Repeat("0", 128)
	if w, err = NewWriter(io.Discard, "small.ovf", opts); err != nil {
		t.Fatal(err)
	}
	if err := p.Repack(w, nil, nil); err == nil {
		t.Error("a wrong digest was written")
	}
	if _, err := p.Digests("MD5", nil); err == nil {
		t.Error("MD5")
	}
}

// sparse is a file that is zeros but for its head.
type sparse struct {
	head []byte
	size int64
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.head)) {
		copy(p[:n], s.head[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// TestLarge opens a member of 9 GiB, whose size is base-256 or in a pax
// header.
func TestLarge(t *testing.T) {
	const size = 9<<30 + 1
	for _, format := range []tar.Format{tar.FormatGNU, tar.FormatPAX} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		text := smallText(t, size, 0)
		w.WriteHeader(&tar.Header{Name: "small.ovf", Mode: 0o644, Size: int64(len(text)), Format: tar.FormatUSTAR})
		w.Write(text)
		w.WriteHeader(&tar.Header{Name: "sbom.json", Mode: 0o644, Format: tar.FormatUSTAR})
		if err := w.WriteHeader(&tar.Header{Name: "small-1.vmdk", Mode: 0o644, Size: size, Format: format}); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		total := (int64(b.Len())+size+511)&^511 + 1024
		p, err := OpenOVA(sparse{b.Bytes(), total}, total, nil)
		if err != nil {
			t.Errorf("%v: %v", format, err)
			continue
		}
		blob, err := p.OpenFile("file1")
		if err != nil || blob.Size() != size {
			t.Errorf("%v: %v", format, err)
			continue
		}
		var c [4]byte
		if n, err := blob.ReadAt(c[:], size-2); n != 2 || err != io.EOF {
			t.Errorf("%v: ReadAt = %d, %v", format, n, err)
		}
	}
}

// TestMemory parses, checks, describes and edits the largest descriptors
// there can be, and looks at how much memory was in use at once.
func TestMemory(t *testing.T) {
	item := `<Item><rasd:AllocationUnits>byte</rasd:AllocationUnits><rasd:Connection>n</rasd:Connection><rasd:ElementName>e</rasd:ElementName><rasd:HostResource>ovf:/disk/d</rasd:HostResource><rasd:InstanceID>%d</rasd:InstanceID><rasd:Parent>p</rasd:Parent></Item>`
	prop := `<Property ovf:key="k%d" ovf:type="string" ovf:userConfigurable="true" ovf:value="v"><Label>l</Label><Description>d</Description></Property>`
	file := `<File ovf:id="f%d" ovf:href="f%d" ovf:size="1" ovf:compression="gzip"/>`
	disk := `<Disk ovf:diskId="d%d" ovf:capacity="${x}" ovf:parentRef="d%d" ovf:format="x"/>`
	repeat := func(n int, format string, args int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, slices.Repeat([]any{i}, args)...)
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"items":      minimal("", "", "<VirtualHardwareSection><Info/>"+repeat(14000, item, 1)+"</VirtualHardwareSection>"),
		"properties": minimal("", "", "<ProductSection><Info/>"+repeat(16000, prop, 1)+"</ProductSection>"),
		"files":      minimal(repeat(16000, file, 2), "<DiskSection><Info/>"+repeat(4000, disk, 2)+"</DiskSection>", ""),
		"attributes": minimal("", "<v:S ovf:required='false'>"+repeat(maxAttributes/100-1, "<v:a"+manyAttrs(99)+"/>", 0)+"</v:S>", ""),
		"elements":   minimal("", "<v:S ovf:required='false'>"+strings.Repeat("<v:a/>", maxElements-20)+"</v:S>", ""),
		"text":       minimal("", "", "<AnnotationSection><Info/>"+strings.Repeat("<!-- x -->", 300_000)+"<Annotation>"+strings.Repeat("&amp;", 100_000)+"</Annotation></AnnotationSection>"),
	} {
		if len(text) > MaxDescriptor {
			t.Errorf("%s: %d bytes", name, len(text))
		}
		debug.SetGCPercent(20)
		runtime.GC()
		var before, peak runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		mark := func() {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			peak.HeapAlloc = max(peak.HeapAlloc, m.HeapAlloc)
		}
		e, err := Parse([]byte(text), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		mark()
		found := e.Validate(nil)
		d := e.Describe()
		mark()
		ed := NewEditor(e)
		if err := ed.SetInventory("", testInventory()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		mark()
		took := time.Since(start)
		runtime.KeepAlive(e)
		runtime.KeepAlive(d)
		runtime.KeepAlive(ed)
		debug.SetGCPercent(100)
		n := int64(peak.HeapAlloc) - int64(before.HeapAlloc)
		t.Logf("%s: %d KiB of text, %d findings, %d MiB in use, %v", name, len(text)>>10, len(found), n>>20, took)
		if n > 40<<20 || len(found) > maxProblems+1 {
			t.Errorf("%s: %d MiB in use, %d findings", name, n>>20, len(found))
		}
		if took > 30*time.Second { // 0.2 s alone on the machine; what is quadratic takes minutes
			t.Errorf("%s: took %v", name, took)
		}
	}
}
