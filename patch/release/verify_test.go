package release

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/appliance/xvm"
	"imgmaint/formats/open"
	"imgmaint/internal/pgp"
	"imgmaint/internal/testimg"
)

var madeAt = time.Unix(1_700_000_000, 0)

// signedPackage is an XVM package of one small disk, and the keyring of its
// signer; unsigned when sign is false.
func signedPackage(t *testing.T, sign bool) ([]byte, *pgp.Keyring) {
	t.Helper()
	secret, public, err := pgp.Generate("Golden", "golden@example.org", madeAt.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	s, err := pgp.ReadSigner(bytes.NewReader(secret), &pgp.SignerOptions{Time: madeAt})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := pgp.ReadKeyring(bytes.NewReader(public))
	if err != nil {
		t.Fatal(err)
	}
	wo := &xvm.WriterOptions{}
	if sign {
		wo.Sign = func(m []byte) ([]byte, error) { return s.DetachSign(context.Background(), bytes.NewReader(m)) }
	}
	disk, _, err := open.Reader(bytes.NewReader(testimg.Disk(4096, 1)), 4096, "raw")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.xvm")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := xvm.NewWriter(f, &xvm.Document{Name: "golden",
		Machines: []formats.Machine{{ID: "vm", CPUs: 1, Memory: 1 << 28, Disks: []string{"root"}}},
		Disks:    []formats.PackageDisk{{ID: "root", Member: "root.img", Format: "raw", Compression: "none", Size: 4096, Role: "disk", Device: "xvda"}},
	}, wo)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.WriteDisk("root", disk), w.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b, keys
}

func verify(t *testing.T, path string, o *VerifyOptions) (*Report, error) {
	t.Helper()
	p, err := open.Package(path, nil)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return Verify(context.Background(), p, o)
}

func TestVerify(t *testing.T) {
	signed, keys := signedPackage(t, true)
	bare, others := signedPackage(t, false)
	wrong := bytes.Clone(signed)
	i := bytes.LastIndex(wrong, testimg.Disk(4096, 1)[:512])
	if i < 0 {
		t.Fatal("the disk is not in the package")
	}
	wrong[i+100] ^= 1
	for _, tt := range []struct {
		name    string
		data    []byte
		keys    *pgp.Keyring
		require bool
		verdict open.Verdict
		state   open.SignatureState
		refused string
		text    string
	}{
		{"signed", signed, keys, true, open.Verified, open.SignatureGood, "", "listed, signed"},
		{"other keys", signed, others, false, open.Intact, open.SignatureUntrusted, "", "unknown-key"},
		{"other keys, required", signed, others, true, open.Intact, open.SignatureUntrusted, "a trusted signature", "unknown-key"},
		{"no keys", signed, nil, false, open.Intact, open.SignatureUntrusted, "", "listed, not signed"},
		{"unsigned", bare, keys, false, open.Intact, "", "", "signature: unsigned"},
		{"unsigned, required", bare, keys, true, open.Intact, "", "a signature is required", "signature: unsigned"},
		{"wrong", wrong, keys, false, open.Damaged, open.SignatureGood, "root.img: mismatch", "SHA256 mismatch"},
	} {
		r, err := verify(t, testimg.WriteFile(t, "p", tt.data), &VerifyOptions{Keyring: tt.keys, At: madeAt.Add(time.Hour), RequireSignature: tt.require})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if r.Verdict != tt.verdict || !strings.HasPrefix(r.Refused, tt.refused) || (r.Refused == "") != (tt.refused == "") {
			t.Errorf("%s: %s, refused %q, want %s, %q", tt.name, r.Verdict, r.Refused, tt.verdict, tt.refused)
		}
		if errors.Is(r.Err(), ErrRefused) != (tt.refused != "") {
			t.Errorf("%s: Err = %v", tt.name, r.Err())
		}
		if r.Signed != (tt.state != "") {
			t.Errorf("%s: Signed = %v", tt.name, r.Signed)
		}
		for _, s := range r.Signatures {
			if s.State != tt.state || len(s.Signers) != 1 || s.Signers[0].KeyID == "" || !s.Signers[0].Time.Equal(madeAt) {
				t.Errorf("%s: signature %+v, want %s with its signer", tt.name, s, tt.state)
			}
		}
		var text bytes.Buffer
		if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), tt.text) || !strings.Contains(text.String(), "verdict: "+string(tt.verdict)) {
			t.Errorf("%s: WriteText = %s, %v, want %q", tt.name, text.String(), err, tt.text)
		}
	}
}

// No package with a changed byte or a missing end is verified.
func TestVerifyChanged(t *testing.T) {
	signed, keys := signedPackage(t, true)
	dir := t.TempDir()
	path := filepath.Join(dir, "p")
	try := func(what string, at int, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := verify(t, path, &VerifyOptions{Keyring: keys, At: madeAt.Add(time.Hour), RequireSignature: true})
		if err == nil && (r.Verdict == open.Verified || r.Refused == "") {
			t.Errorf("%s %d: %s, refused %q", what, at, r.Verdict, r.Refused)
		}
	}
	for i := 0; i < len(signed); i += 29 {
		b := bytes.Clone(signed)
		b[i] ^= 1
		try("byte", i, b)
	}
	// What follows the two blocks of zeros that end a tar only fills it up.
	end := (len(bytes.TrimRight(signed, "\x00"))+511)/512*512 + 1024
	for n := 512; n < end; n += 512 {
		try("cut at", n, signed[:n])
	}
}

// What a package puts into a report can not pass for a line of it.
func TestWriteTextHostile(t *testing.T) {
	evil := "a\nverdict: verified\rb"
	r := &Report{Package: "p", Signed: true, Verification: &open.Verification{Verdict: open.Damaged, Reasons: []string{evil}, Findings: []string{evil},
		Members:    []open.VerifiedMember{{Name: evil, Digest: open.DigestMismatch}},
		Signatures: []open.VerifiedSignature{{Member: evil, Over: evil, Reason: evil, Signers: []open.Signer{{Name: evil}}}},
	}}
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n != 6 || strings.Contains(b.String(), "\nverdict: verified") || strings.Contains(b.String(), "\r") {
		t.Errorf("%d lines, want 6:\n%s", n, b.String())
	}
}

func TestVerifyInterrupted(t *testing.T) {
	signed, _ := signedPackage(t, true)
	p, err := open.Package(testimg.WriteFile(t, "p", signed), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r, err := Verify(ctx, p, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify = %v, %v, want canceled", r, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAddRoots(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    io.Reader
		want error
	}{
		{"empty", strings.NewReader(""), formats.ErrUnknown},
		{"text", strings.NewReader("no certificate here\n"), formats.ErrUnknown},
		{"key", strings.NewReader("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), errors.ErrUnsupported},
		{"broken", strings.NewReader("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), formats.ErrCorrupt},
		{"long", io.LimitReader(zeros{}, maxTrustFile+1), formats.ErrLimit},
		{"failing", failing{}, io.ErrClosedPipe},
	} {
		if err := AddRoots(x509.NewCertPool(), tt.r); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
