package ovf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/formatstest"
	"imgmaint/internal/testimg"
)

// now is the time tests verify at.
var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// A signer is a key with its chain.
type signer struct {
	key   crypto.Signer
	chain []*x509.Certificate
}

var keys = sync.OnceValue(func() (k struct {
	rsa, weak *rsa.PrivateKey
	ec        *ecdsa.PrivateKey
}) {
	var errs [3]error
	k.rsa, errs[0] = rsa.GenerateKey(rand.Reader, 2048)
	k.weak, errs[1] = rsa.GenerateKey(rand.Reader, 1024)
	// The same in every process, so that found inputs stay good.
	k.ec, errs[2] = ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err := errors.Join(errs[:]...); err != nil {
		panic(err)
	}
	return k
})

// issue makes a certificate for key; parent nil makes it self-signed.
func issue(t testing.TB, name string, key crypto.Signer, parent *signer, change func(*x509.Certificate)) *signer {
	t.Helper()
	x := &x509.Certificate{SerialNumber: big.NewInt(int64(len(name)) + 100), Subject: pkix.Name{CommonName: name},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}
	if change != nil {
		change(x)
	}
	up, upKey := x, key
	var chain []*x509.Certificate
	if parent != nil {
		up, upKey, chain = parent.chain[0], parent.key, parent.chain
	}
	random := rand.Reader
	if _, ok := upKey.(*ecdsa.PrivateKey); ok {
		random = nil
	}
	der, err := x509.CreateCertificate(random, x, up, key.Public(), upKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key, append([]*x509.Certificate{c}, chain...)}
}

func ca(x *x509.Certificate) {
	x.IsCA, x.KeyUsage, x.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
}

func pool(s ...*signer) *x509.CertPool {
	p := x509.NewCertPool()
	for _, s := range s {
		p.AddCert(s.chain[0])
	}
	return p
}

func (s *signer) options(alg string) *WriterOptions {
	return &WriterOptions{Sign: func(name string, mf []byte) ([]byte, error) { return Sign(name, mf, alg, s.key, s.chain) }}
}

func TestSignatureStates(t *testing.T) {
	k := keys()
	root := issue(t, "root", k.ec, nil, ca)
	inter := issue(t, "inter", k.rsa, root, ca)
	good := issue(t, "good", k.rsa, inter, nil)
	for _, c := range []struct {
		name  string
		s     *signer
		alg   string
		roots *x509.CertPool
		at    time.Time
		state SignatureState
	}{
		{"chain", good, "SHA256", pool(root), now, SigValid},
		{"chain to the middle", good, "SHA512", pool(inter), now, SigValid},
		{"signer itself is trusted", issue(t, "self", k.ec, nil, nil), "SHA384", nil, now, SigUntrusted},
		{"no usage extension", issue(t, "plain", k.ec, root, func(x *x509.Certificate) { x.ExtKeyUsage = nil }), "SHA256", pool(root), now, SigValid},
		{"no roots", good, "SHA256", nil, now, SigUntrusted},
		{"other root", good, "SHA256", pool(issue(t, "other", k.weak, nil, ca)), now, SigUntrusted},
		{"expired", good, "SHA256", pool(root), now.AddDate(2, 0, 0), SigExpired},
		{"not yet", good, "SHA256", pool(root), now.AddDate(-2, 0, 0), SigExpired},
		{"expired and untrusted", good, "SHA256", nil, now.AddDate(2, 0, 0), SigUntrusted},
		{"sha1", good, "SHA1", pool(root), now, SigWeak},
		{"short key", issue(t, "weak", k.weak, root, nil), "SHA256", pool(root), now, SigWeak},
		{"for servers", issue(t, "tls", k.ec, root, func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "SHA256", pool(root), now, SigWrongKeyUsage},
		{"not for signatures", issue(t, "kex", k.rsa, root, func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageKeyEncipherment }), "SHA256", pool(root), now, SigWrongKeyUsage},
	} {
		mf := []byte("SHA256(x.ovf)= 00\n")
		b, err := Sign("x.mf", mf, c.alg, c.s.key, c.s.chain)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		again, _ := Sign("x.mf", mf, c.alg, c.s.key, c.s.chain)
		if !bytes.Equal(b, again) {
			t.Errorf("%s: two runs, two signatures", c.name)
		}
		cert, err := ParseCert(b)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		trust := &TrustOptions{Roots: c.roots, Time: c.at}
		if r := VerifySignature(cert, "x.mf", mf, trust); r.State != c.state {
			t.Errorf("%s: %s (%s), want %s", c.name, r.State, r.Detail, c.state)
		}
		if r := VerifySignature(cert, "x.mf", append(mf, ' '), trust); r.State != SigMismatch {
			t.Errorf("%s: other bytes: %s", c.name, r.State)
		}
		if r := VerifySignature(cert, "y.mf", mf, trust); r.State != SigMismatch {
			t.Errorf("%s: other name: %s", c.name, r.State)
		}
	}
	self := issue(t, "self", k.ec, nil, nil)
	b, err := Sign("x.mf", []byte("m"), "SHA256", self.key, self.chain)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := ParseCert(b)
	if r := VerifySignature(cert, "x.mf", []byte("m"), &TrustOptions{Roots: pool(self), Time: now}); r.State != SigValid || r.Signer.Subject != "CN=self" || r.Signer.Key != "ECDSA 256" {
		t.Errorf("trusted by itself: %+v", r)
	}
	// A certificate beside the chain is not let pass.
	stray := append(append([]*x509.Certificate{}, good.chain...), self.chain...)
	b, err = Sign("x.mf", []byte("m"), "SHA256", good.key, stray)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ = ParseCert(b)
	if r := VerifySignature(cert, "x.mf", []byte("m"), &TrustOptions{Roots: pool(root), Time: now}); r.State != SigUntrusted {
		t.Errorf("stray certificate: %s", r.State)
	}
	if _, err := Sign("x.mf", []byte("m"), "SHA256", k.ec, good.chain); err == nil {
		t.Error("a key that is not the certificate's")
	}
	if _, err := Sign("x.mf", []byte("m"), "MD5", good.key, good.chain); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("MD5: %v", err)
	}
}

func TestParseCert(t *testing.T) {
	k := keys()
	s := issue(t, "s", k.ec, nil, nil)
	b, err := Sign("x.mf", []byte("m"), "SHA256", s.key, s.chain)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	line, block, _ := strings.Cut(text, "\n")
	p7 := "-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n"
	for _, c := range []struct {
		name, text string
		class      error
		other      int
		free       bool
	}{
		{"ours", text, nil, 0, false},
		{"windows", strings.ReplaceAll(text, "\n", "\r\n"), nil, 0, false},
		{"further block", text + p7, nil, 1, false},
		{"text", text + "\nBag Attributes\n", nil, 0, true},
		{"certificate first", block + line + "\n", nil, 0, false},
		{"no signature", block, formats.ErrCorrupt, 0, false},
		{"no certificate", line + "\n", formats.ErrCorrupt, 0, false},
		{"empty", "", formats.ErrCorrupt, 0, false},
		{"md5", "MD5" + strings.TrimPrefix(text, "SHA256"), errors.ErrUnsupported, 0, false},
		{"block not ended", strings.Replace(text, "-----END", "-----ENE", 1), formats.ErrCorrupt, 0, false},
		{"block not begun", strings.Replace(text, "-----BEGIN", "-----BEGIM", 1), formats.ErrCorrupt, 0, false},
		{"dashes", strings.Replace(text, "-----BEGIN", "----=BEGIN", 1), formats.ErrCorrupt, 0, false},
		{"other line width", wrap(text, 76), formats.ErrCorrupt, 0, false},
		{"not base64", strings.Replace(text, "MII", "M*I", 1), formats.ErrCorrupt, 0, false},
		{"not a certificate", line + "\n" + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", formats.ErrCorrupt, 0, false},
		{"many", line + "\n" + strings.Repeat(block, maxCerts+1), formats.ErrLimit, 0, false},
		{"many others", text + strings.Repeat(p7, maxCerts+1), formats.ErrLimit, 0, false},
		{"large", text + strings.Repeat("x\n", maxCert/2), formats.ErrLimit, 0, false},
	} {
		cert, err := ParseCert([]byte(c.text))
		if (err == nil) != (c.class == nil) || err != nil && !errors.Is(err, c.class) {
			t.Errorf("%s: %v, want %v", c.name, err, c.class)
			continue
		}
		if err == nil && (len(cert.Other) != c.other || cert.Text != c.free || len(cert.Chain) != 1) {
			t.Errorf("%s: %+v", c.name, cert)
		}
	}
}

// wrap breaks the base64 of a .cert at another width.
func wrap(text string, width int) string {
	line, rest, _ := strings.Cut(text, "\n")
	begin, rest, _ := strings.Cut(rest, "\n")
	body, end, _ := strings.Cut(rest, "-----END")
	body = strings.ReplaceAll(body, "\n", "")
	out := line + "\n" + begin + "\n"
	for len(body) > width {
		out, body = out+body[:width]+"\n", body[width:]
	}
	return out + body + "\n-----END" + end
}

// TestOpenSSL signs with openssl and verifies here, and the other way round.
func TestOpenSSL(t *testing.T) {
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	mf := []byte("SHA256(x.ovf)= " + strings.Repeat("0a", 32) + "\n")
	if err := os.WriteFile(path("x.mf"), mf, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		newkey []string
	}{
		{"rsa", []string{"-newkey", "rsa:2048"}},
		{"ec", []string{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"}},
		{"ec384", []string{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"}},
	} {
		key, crt := path(c.name+".key"), path(c.name+".pem")
		testimg.Run(t, "openssl", append([]string{"req", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=" + c.name,
			"-keyout", key, "-out", crt}, c.newkey...)...)
		crtPEM, err := os.ReadFile(crt)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(crtPEM)
		x, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(x)
		for alg, flag := range map[string]string{"SHA256": "-sha256", "SHA384": "-sha384", "SHA512": "-sha512", "SHA1": "-sha1"} {
			// Theirs, put together as people do it.
			hexSig := testimg.Run(t, "sh", "-c", fmt.Sprintf("openssl dgst %s -sign '%s' '%s' | xxd -p | tr -d '\\n'", flag, key, path("x.mf")))
			cert, err := ParseCert([]byte(alg + "(x.mf)= " + hexSig + "\n" + string(crtPEM)))
			if err != nil {
				t.Fatalf("%s %s: %v", c.name, alg, err)
			}
			want := SigValid
			if alg == "SHA1" {
				want = SigWeak
			}
			if r := VerifySignature(cert, "x.mf", mf, &TrustOptions{Roots: roots, Time: x.NotBefore.Add(time.Hour)}); r.State != want {
				t.Errorf("%s %s: theirs is %s (%s)", c.name, alg, r.State, r.Detail)
			}
			// Ours, with their key.
			keyPEM, err := os.ReadFile(key)
			if err != nil {
				t.Fatal(err)
			}
			kb, _ := pem.Decode(keyPEM)
			pk, err := x509.ParsePKCS8PrivateKey(kb.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			b, err := Sign("x.mf", mf, alg, pk.(crypto.Signer), []*x509.Certificate{x})
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := strings.Cut(string(b), "\n")
			_, h, _ := strings.Cut(first, ")= ")
			sig, err := hex.DecodeString(h)
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(path("sig"), sig, 0o600)
			testimg.Run(t, "openssl", "x509", "-in", crt, "-pubkey", "-noout", "-out", path("pub"))
			if out := testimg.Run(t, "openssl", "dgst", flag, "-verify", path("pub"), "-signature", path("sig"), path("x.mf")); !strings.Contains(out, "Verified OK") {
				t.Errorf("%s %s: openssl says %q", c.name, alg, out)
			}
			if c.name == "rsa" && h != hexSig {
				t.Errorf("rsa %s: signatures differ", alg)
			}
		}
	}
}

// TestFlip changes every byte of a signed package in turn, in three ways, and
// of an unsigned one: none is reported verified, or intact.
func TestFlip(t *testing.T) {
	k := keys()
	root := issue(t, "root", k.ec, nil, ca)
	leaf := issue(t, "leaf", k.ec, root, nil) // with the root in the chain
	opts := &VerifyOptions{Trust: TrustOptions{Roots: pool(root), Time: now}}
	for _, signed := range []bool{true, false} {
		want := Intact
		var wo *WriterOptions
		if signed {
			want, wo = Verified, leaf.options("SHA256")
		}
		b := smallOVA(t, []byte("the disk"), []byte("{}"), wo)
		r, err := openOVA(t, b).Verify(opts)
		if err != nil || r.Verdict != want || len(r.Reasons) > 1 {
			t.Fatalf("unchanged: %+v %+v, %v", r, r.Signature, err)
		}
		missed := 0
		for i := range b {
			for _, x := range []byte{1, 0x20, 0x80} {
				b[i] ^= x
				p, err := OpenOVA(bytes.NewReader(b), int64(len(b)), nil)
				if err == nil {
					r, err = p.Verify(opts)
				}
				if err == nil && (r.Verdict == Verified || r.Verdict == want) {
					if missed++; missed < 10 {
						t.Errorf("signed %v: byte %d ^ %#x: %s", signed, i, x, r.Verdict)
					}
				}
				b[i] ^= x
			}
		}
		if missed > 0 {
			t.Errorf("signed %v: %d changes of %d bytes were missed", signed, missed, len(b))
		}
	}
}

// TestMix swaps parts of two signed packages.
func TestMix(t *testing.T) {
	k := keys()
	root := issue(t, "root", k.ec, nil, ca)
	leaf := issue(t, "leaf", k.rsa, root, nil)
	opts := &VerifyOptions{Trust: TrustOptions{Roots: pool(root), Time: now}}
	a := openOVA(t, smallOVA(t, []byte("disk a"), []byte("{}"), leaf.options("SHA256")))
	b := openOVA(t, smallOVA(t, []byte("disk b"), []byte("[]"), leaf.options("SHA512")))
	members := func(p *Package) (all []tarFile) {
		for _, m := range p.members {
			text, err := readAll(p, m.name, "", 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, tarFile{m.name, text})
		}
		return all
	}
	fa, fb := members(a), members(b)
	if len(fa) != 5 {
		t.Fatal(len(fa))
	}
	for mask := range 1 << len(fa) {
		var mixed []tarFile
		for i := range fa {
			if mask>>i&1 == 0 {
				mixed = append(mixed, fa[i])
			} else {
				mixed = append(mixed, fb[i])
			}
		}
		r, err := openOVA(t, rawTar(t, mixed...)).Verify(opts)
		// The descriptors are the same but for nothing: sizes agree.
		same := mask == 0 || mask == 31 || bytes.Equal(fa[0].b, fb[0].b) && (mask == 1 || mask == 30)
		if err != nil || (r.Verdict == Verified) != same {
			t.Errorf("mix %05b: %s %q, %v", mask, r.Verdict, r.Reasons, err)
		}
	}
	// Without the certificate it is not verified, and not damaged.
	if r, err := openOVA(t, rawTar(t, fa[:4]...)).Verify(opts); err != nil || r.Verdict != Intact {
		t.Errorf("certificate removed: %+v, %v", r, err)
	}
	if r, err := openOVA(t, rawTar(t, fa[0], fa[1], fa[2], fa[4])).Verify(opts); err != nil || r.Verdict != Damaged {
		t.Errorf("manifest removed: %+v, %v", r, err)
	}
}

// TestSignedSHA1 has the signature over digests that prove nothing.
func TestSignedSHA1(t *testing.T) {
	k := keys()
	root := issue(t, "root", k.ec, nil, nil)
	opts := root.options("SHA256")
	opts.Algorithm = "SHA1"
	var out formatstest.Buffer
	w, err := NewWriterAt(&out, "small.ovf", opts)
	if err != nil {
		t.Fatal(err)
	}
	text := smallText(t, 1, 1)
	w.WriteDescriptor(text)
	w.WriteFile("small-1.vmdk", strings.NewReader("x"), 1, 0)
	w.WriteFile("sbom.json", strings.NewReader("y"), 1, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p := openOVA(t, out.Bytes())
	r, err := p.Verify(&VerifyOptions{Trust: TrustOptions{Roots: pool(root), Time: now}})
	if err != nil || r.Verdict != Intact || r.Signature.State != SigValid || !r.Members[0].Weak {
		t.Errorf("%+v, %v", r, err)
	}
	m, _ := p.Manifest()
	if want := fmt.Sprintf("%x", sha1.Sum(text)); m.Entry("small.ovf").Digest != want {
		t.Errorf("digest %q, want %q", m.Entry("small.ovf").Digest, want)
	}
}

func TestVerifyProgress(t *testing.T) {
	b := smallOVA(t, make([]byte, 3<<20), []byte("{}"), nil)
	p := openOVA(t, b)
	var last, total int64
	if _, err := p.Verify(&VerifyOptions{Progress: func(d, n int64) error {
		if d < last {
			t.Errorf("progress %d after %d", d, last)
		}
		last, total = d, n
		return nil
	}}); err != nil || last != total || total < 3<<20 {
		t.Errorf("progress %d of %d, %v", last, total, err)
	}
	stop := errors.New("stop")
	if _, err := p.Verify(&VerifyOptions{Progress: func(int64, int64) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("stopped: %v", err)
	}
}

func FuzzCert(f *testing.F) {
	k := keys()
	root := issue(f, "root", k.ec, nil, ca)
	leaf := issue(f, "leaf", k.ec, root, nil)
	mf := []byte("SHA256(x.ovf)= 00\n")
	b, err := Sign("x.mf", mf, "SHA256", leaf.key, leaf.chain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(append(bytes.Clone(b), "-----BEGIN PKCS7-----\nAAAA\n-----END PKCS7-----\n"...))
	f.Add([]byte("SHA1(x.mf)= 00\n"))
	trust := &TrustOptions{Roots: pool(root), Time: now}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCert(b)
		if err != nil {
			if c != nil {
				t.Fatal("a certificate with an error")
			}
			return
		}
		r := VerifySignature(c, "x.mf", mf, trust)
		if r.State == SigNone {
			t.Fatal("none")
		}
		if r.State == SigValid && sha256.Sum256(c.Chain[0].Raw) != sha256.Sum256(leaf.chain[0].Raw) {
			t.Fatal("signed by another")
		}
		ParseManifest(b)
	})
}

func BenchmarkVerify(b *testing.B) {
	disk := make([]byte, 64<<20)
	ova := smallOVA(b, disk, []byte("{}"), nil)
	p := openOVA(b, ova)
	b.Run("verify", func(b *testing.B) {
		b.SetBytes(int64(len(ova)))
		for b.Loop() {
			if r, err := p.Verify(nil); err != nil || r.Verdict != Intact {
				b.Fatal(err)
			}
		}
	})
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(int64(len(ova)))
		for b.Loop() {
			sha256.Sum256(ova)
		}
	})
}
