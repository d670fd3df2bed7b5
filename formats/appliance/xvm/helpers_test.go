package xvm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/disk/raw"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/pgp"
	"imgmaint/internal/testimg"
)

var when = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

var key = sync.OnceValues(func() (secret, public []byte) {
	secret, public, err := pgp.Generate("Tester", "tester@example.org", when.Add(-time.Hour))
	if err != nil {
		panic(err)
	}
	return secret, public
})

func signer(t testing.TB) *pgp.KeySigner {
	t.Helper()
	secret, _ := key()
	s, err := pgp.ReadSigner(bytes.NewReader(secret), &pgp.SignerOptions{Time: when})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t testing.TB) func([]byte) ([]byte, error) {
	s := signer(t)
	return func(b []byte) ([]byte, error) { return s.DetachSign(context.Background(), bytes.NewReader(b)) }
}

// checker is how a caller joins Verify to an OpenPGP library.
func checker(t testing.TB) func(*Signature) (SignatureResult, error) {
	t.Helper()
	_, public := key()
	ring, err := pgp.ReadKeyring(bytes.NewReader(public))
	if err != nil {
		t.Fatal(err)
	}
	policy := &pgp.Policy{At: when.Add(time.Hour)}
	return func(s *Signature) (SignatureResult, error) {
		var res *pgp.Result
		var err error
		if s.Form == ClearSigned {
			res, err = ring.VerifyClearsigned(s.Data, policy)
		} else {
			res, err = ring.Verify(s.Data, bytes.NewReader(s.Message), policy)
		}
		if err != nil {
			return SignatureResult{}, err
		}
		r := SignatureResult{State: SignatureUntrusted, Text: res.Text, Reason: res.Reason, Detail: res.Signatures}
		if res.Trusted {
			r.State = SignatureGood
		}
		for _, s := range res.Signatures {
			if s.Status == pgp.BadSignature {
				r.State = SignatureBad
			}
		}
		return r, nil
	}
}

// group is a document with everything in it.
func group() *Document {
	return &Document{Name: "shop & \"more\"", Description: "two machines\n\tin a <group>\r\n", Release: "1.2",
		Machines: []formats.Machine{
			{ID: "web", Name: "web", Description: " d ", Product: "p", Vendor: "v", Version: "1", FullVersion: "1.0.0", OS: "debian",
				Arch: "x86_64", CPUs: 2, Memory: 1 << 30, Disks: []string{"root", "empty"}, Networks: []string{"front", "back"},
				Properties: []formats.MachineProperty{{Key: "web.host", Type: "string", Value: "a\nb", Label: "Host", Description: "x", Settable: true},
					{Key: "pw", Password: true}},
				Licences: []string{"Do what you like.\n\nSigned, nobody.", "second"}},
			{ID: "db", Disks: []string{"data", "root"}},
		},
		Disks: []formats.PackageDisk{
			{ID: "root", Member: "imagefile", Format: "raw", Compression: "gzip", Size: 300_000, Role: "partition", Device: "xvda1"},
			{ID: "data", Member: "imagefile2", Format: "raw", Compression: "none", Size: 70_001, Role: "disk", Parent: "root"},
			{ID: "empty", Size: 1 << 40},
			{ID: "cow", Member: "dir/disk.qcow2", Format: "qcow2", Compression: "none", Size: 12345},
		},
		Documents: []SideCar{{Member: "sbom.cdx.json", Type: "application/vnd.cyclonedx+json", Title: "What is inside", Machine: "web"},
			{Member: "NOTICE", Type: "text/plain"}},
	}
}

func rawImage(t testing.TB, b []byte) formats.Image {
	t.Helper()
	img, err := raw.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// write writes group() to out.
func write(t testing.TB, out io.WriterAt, doc *Document, opts *WriterOptions) error {
	t.Helper()
	w, err := NewWriter(out, doc, opts)
	if err != nil {
		return err
	}
	for i, k := range doc.Disks {
		content := testimg.Disk(k.Size&0xfffff, uint64(i))
		switch {
		case k.Member == "":
		case k.Format == "raw":
			if err := w.WriteDisk(k.ID, rawImage(t, content)); err != nil {
				return err
			}
		default:
			m, err := w.Create(k.Member)
			if err != nil {
				return err
			}
			if _, err := m.Write(content); err != nil {
				return err
			}
			if err := w.SetSHA256(k.ID, "00000000000000000000000000000000000000000000000000000000000000aa"); err != nil {
				return err
			}
		}
	}
	for _, s := range doc.Documents {
		m, err := w.Create(s.Member)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(m, "about "+s.Member+"\n"); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if b, ok := out.(*formatstest.Buffer); ok && w.Size() != int64(len(b.Bytes())) {
		return fmt.Errorf("Size() = %d, the file has %d", w.Size(), len(b.Bytes()))
	}
	return nil
}

func packed(t testing.TB, doc *Document, opts *WriterOptions) []byte {
	t.Helper()
	var buf formatstest.Buffer
	if err := write(t, &buf, doc, opts); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func open(b []byte) (*Package, error) { return Open(bytes.NewReader(b), int64(len(b)), nil) }

func mustOpen(t testing.TB, b []byte) *Package {
	t.Helper()
	p, err := open(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func verify(t testing.TB, p *Package, opts *VerifyOptions) *Report {
	t.Helper()
	r, err := p.Verify(opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type file struct {
	name string
	b    []byte
}

// tarOf is a package as others make it.
func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.b)), Format: tar.FormatGNU}); err != nil {
			t.Fatal(err)
		}
		w.Write(f.b)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func sha1hex(b []byte) string { s := sha1.Sum(b); return hex.EncodeToString(s[:]) }
func md5hex(b []byte) string  { s := md5.Sum(b); return hex.EncodeToString(s[:]) }

// class names the class of an error.
func class(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, formats.ErrUnknown):
		return "unknown"
	case errors.Is(err, formats.ErrCorrupt):
		return "corrupt"
	case errors.Is(err, formats.ErrLimit):
		return "limit"
	case errors.Is(err, errors.ErrUnsupported):
		return "unsupported"
	}
	return "other: " + err.Error()
}

func stateOf(r *Report, name string) MemberReport {
	for _, m := range r.Members {
		if m.Name == name {
			return m
		}
	}
	return MemberReport{}
}

// generate makes a signer nobody trusts.
func generate() (*pgp.KeySigner, []byte, error) {
	secret, public, err := pgp.Generate("Other", "other@example.org", when.Add(-time.Hour))
	if err != nil {
		return nil, nil, err
	}
	s, err := pgp.ReadSigner(bytes.NewReader(secret), &pgp.SignerOptions{Time: when})
	return s, public, err
}
