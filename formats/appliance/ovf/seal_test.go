package ovf

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

func TestManifest(t *testing.T) {
	h := strings.Repeat("ab", 32)
	for _, c := range []struct {
		name, text string
		class      error
		notes      int
	}{
		{"standard", "SHA256(a.ovf)= " + h + "\nSHA256(b (1).vmdk)= " + h + "\n", nil, 0},
		{"no space", "SHA256(a)=" + h + "\n", nil, 0},
		{"upper case", "SHA256(a)= " + strings.ToUpper(h) + "\n", nil, 0},
		{"windows", "SHA256(a)= " + h + "\r\nSHA256(b)= " + h + "\r\n", nil, 0},
		{"no last line end", "SHA256(a)= " + h, nil, 0},
		{"openssl", "SHA256 (a) = " + h + "\n", nil, 1},
		{"lower case name", "sha256(a)= " + h + "\n", nil, 1},
		{"sha1", "SHA1(a)= " + h[:40] + "\n", nil, 0},
		{"sha512", "SHA512(a)= " + h + h + "\n", nil, 0},
		{"two algorithms", "SHA1(a)= " + h[:40] + "\nSHA256(b)= " + h + "\n", nil, 1},
		{"empty", "", formats.ErrCorrupt, 0},
		{"md5", "MD5(a)= " + h[:32] + "\n", errors.ErrUnsupported, 0},
		{"mixed case", "SHA256(a)= A" + h[1:] + "\n", formats.ErrCorrupt, 0},
		{"mixed case of lines", "SHA256(a)= " + h + "\nSHA256(b)= " + strings.ToUpper(h) + "\n", formats.ErrCorrupt, 0},
		{"mixed case name", "Sha256(a)= " + h + "\n", formats.ErrCorrupt, 0},
		{"short", "SHA256(a)= " + h[2:] + "\n", formats.ErrCorrupt, 0},
		{"odd", "SHA256(a)= " + h[1:] + "\n", formats.ErrCorrupt, 0},
		{"twice", "SHA256(a)= " + h + "\nSHA256(a)= " + h + "\n", formats.ErrCorrupt, 0},
		{"space at the end", "SHA256(a)= " + h + " \n", formats.ErrCorrupt, 0},
		{"tab", "SHA256(a)=\t" + h + "\n", formats.ErrCorrupt, 0},
		{"mixed line ends", "SHA256(a)= " + h + "\r\nSHA256(b)= " + h + "\n", formats.ErrCorrupt, 0},
		{"no name", "SHA256()= " + h + "\n", formats.ErrCorrupt, 0},
		{"gnu", h + "  a\n", formats.ErrCorrupt, 0},
	} {
		m, err := ParseManifest([]byte(c.text))
		if (err == nil) != (c.class == nil) || err != nil && !errors.Is(err, c.class) {
			t.Errorf("%s: %v, want %v", c.name, err, c.class)
		} else if err == nil && len(m.Notes) != c.notes {
			t.Errorf("%s: notes %q", c.name, m.Notes)
		} else if c.name == "standard" {
			if b, err := m.Marshal(); err != nil || string(b) != c.text || m.Entry("b (1).vmdk") == nil {
				t.Errorf("Marshal = %q, %v", b, err)
			}
		}
	}
}

func FuzzOpenOVA(f *testing.F) {
	f.Add(smallOVA(f, testimg.Disk(2000, 1), []byte("{}"), nil))
	f.Add(rawTar(f, tarFile{"x.ovf", load(f, "strings.ovf")}, tarFile{"x.mf", []byte("SHA1(x.ovf)= 00\n")}, tarFile{"packed.raw.gz", []byte("x")}))
	f.Add(rawTar(f, tarFile{"x.ovf", load(f, "ovf2.ovf")}, tarFile{"x.cert", []byte("SHA1(x.mf)= 00\n")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<17 {
			return
		}
		p, err := OpenOVA(bytes.NewReader(b), int64(len(b)), &Options{ParseOptions{AllowRequired: true}})
		if err != nil {
			if p != nil {
				t.Fatal("a package with an error")
			}
			return
		}
		if _, err := json.Marshal(p.Descriptor()); err != nil {
			t.Fatal(err)
		}
		r, err := p.Verify(nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Verdict == Verified {
			t.Fatal("verified without a root")
		}
		for i, f := range p.Envelope().Files {
			if i > 10 {
				break
			}
			if d, err := p.Decode(f.ID, 1<<20); err == nil {
				io.Copy(io.Discard, d)
				d.Close()
			}
		}
	})
}
