package pgp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imgmaint/internal/testimg"
)

// A gnupg is a GnuPG home of its own.
type gnupg struct {
	t    testing.TB
	dir  string
	home string
}

func newGnupg(t testing.TB) *gnupg {
	t.Helper()
	testimg.Tool(t, "gpg")
	dir := t.TempDir()
	home := filepath.Join(dir, "g")
	if len(home) > 70 { // the agent's socket has to fit into 108 bytes
		var err error
		if home, err = os.MkdirTemp("", "g"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(home) })
	} else if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	g := &gnupg{t: t, dir: dir, home: home}
	t.Cleanup(func() {
		cmd := exec.Command("gpgconf", "--homedir", home, "--kill", "all")
		_ = cmd.Run() // without an agent there is nothing to end
	})
	return g
}

// try runs a program of GnuPG and returns standard output and standard error.
func (g *gnupg) try(stdin []byte, name string, args ...string) (string, string, error) {
	g.t.Helper()
	cmd := exec.Command(testimg.Tool(g.t, name), args...)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+g.home, "LC_ALL=C", "TZ=UTC")
	cmd.Dir = g.dir
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), err
}

// gpg runs gpg in batch mode; its failure is the test's.
func (g *gnupg) gpg(stdin []byte, args ...string) []byte {
	g.t.Helper()
	all := append([]string{"--batch", "--yes", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)
	out, errs, err := g.try(stdin, "gpg", all...)
	if err != nil {
		g.t.Fatalf("gpg %s: %v\n%s", strings.Join(args, " "), err, errs)
	}
	return []byte(out)
}

// generate makes a key for signing and returns its fingerprint.
func (g *gnupg) generate(name, algo, usage, expire string, more ...string) string {
	g.t.Helper()
	g.gpg(nil, append(more, "--quick-gen-key", name+" <"+name+"@example.org>", algo, usage, expire)...)
	return g.fingerprints(name + "@example.org")[0]
}

// fingerprints lists those of a primary key and its subkeys.
func (g *gnupg) fingerprints(user string) []string {
	g.t.Helper()
	var out []string
	for line := range strings.Lines(string(g.gpg(nil, "--with-colons", "--list-keys", user))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			out = append(out, f[9])
		}
	}
	return out
}

// ring exports public keys and reads them.
func (g *gnupg) ring(users ...string) *Keyring {
	g.t.Helper()
	return mustRing(g.t, g.gpg(nil, append([]string{"--export"}, users...)...))
}

// statuses runs gpgv over a detached signature and returns the kinds of its
// status lines, as "GOODSIG", one per signature.
func (g *gnupg) statuses(keys, sig, msg []byte, args ...string) []string {
	g.t.Helper()
	for name, b := range map[string][]byte{"k.gpg": keys, "m.sig": sig, "m": msg} {
		if err := os.WriteFile(filepath.Join(g.dir, name), b, 0o600); err != nil {
			g.t.Fatal(err)
		}
	}
	args = append(args, "--status-fd", "1", "--keyring", "./k.gpg", "m.sig")
	if msg != nil {
		args = append(args, "m")
	}
	out, _, _ := g.try(nil, "gpgv", args...)
	var kinds []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch f[1] {
		case "GOODSIG", "BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG":
			kinds = append(kinds, f[1])
		}
	}
	return kinds
}

func mustRing(t testing.TB, files ...[]byte) *Keyring {
	t.Helper()
	k := new(Keyring)
	for _, b := range files {
		if err := k.Read(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func mustVerify(t testing.TB, k *Keyring, sig, msg []byte, p *Policy) *Result {
	t.Helper()
	res, err := k.Verify(sig, bytes.NewReader(msg), p)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// wantStatus checks the states of all signatures.
func wantStatus(t testing.TB, res *Result, want ...Status) {
	t.Helper()
	if len(res.Signatures) != len(want) {
		t.Fatalf("%d signatures, want %d", len(res.Signatures), len(want))
	}
	for i, w := range want {
		if s := res.Signatures[i]; s.Status != w {
			t.Errorf("signature %d is %s, want %s", i, s.String(), w)
		}
	}
}

var texts = []struct{ name, text string }{
	{"plain", "hello\nworld\n"},
	{"empty", ""},
	{"line feed", "\n"},
	{"two line feeds", "\n\n"},
	{"no final newline", "one\ntwo"},
	{"dashes", "-\n- \n-- \n- dash\n-----BEGIN PGP SIGNATURE-----\n---\n"},
	{"from", "From here\n>From\n"},
	{"trailing spaces", "a  \nb\t\n \t \nlast \n"},
	{"crlf", "one\r\ntwo\r\n"},
	{"crlf with spaces", "one \t\r\ntwo\r\r\n"},
	{"mixed ends", "one\ntwo\r\nthree \nfour"},
	{"lone returns", "a\rb\rc\nd\r"},
	{"return at the end", "a\r"},
	{"blank lines around", "\n\na\n\n\n"},
	{"utf-8", "größe\n\u2028x\n"},
	{"nul", "a\x00b\n"},
	{"hash header", "Hash: SHA1\n\n"},
}

// TestVerifyGPG: what GnuPG signs is valid here, and the signed text is right.
func TestVerifyGPG(t *testing.T) {
	g := newGnupg(t)
	g.generate("ed", "ed25519", "sign", "never")
	g.generate("p256", "nistp256", "sign", "never")
	g.generate("rsa", "rsa2048", "sign", "never")
	k := g.ring()
	for _, user := range []string{"ed", "p256", "rsa"} {
		for _, c := range texts {
			t.Run(user+" "+c.name, func(t *testing.T) {
				g.t = t
				msg := []byte(c.text)
				for _, args := range [][]string{
					{"--detach-sign"}, {"--detach-sign", "--armor"}, {"--detach-sign", "--textmode"},
					{"--detach-sign", "--digest-algo", "SHA384"}, {"--detach-sign", "--digest-algo", "SHA224"},
				} {
					if len(args) > 2 && (user != "rsa" || c.name != "plain") {
						continue
					}
					sig := g.gpg(msg, append([]string{"--local-user", user}, args...)...)
					res := mustVerify(t, k, sig, msg, nil)
					wantStatus(t, res, Valid)
					if err := res.Err(); err != nil {
						t.Error(args, err)
					}
					if s := res.Signatures[0]; s.UserID != user+" <"+user+"@example.org>" || s.Fingerprint != g.fingerprints(user)[0] ||
						time.Since(s.Time).Abs() > time.Hour || s.Text != (args[len(args)-1] == "--textmode") {
						t.Errorf("%v: report %+v", args, s)
					}
					other := append([]byte("x"), msg...)
					wantStatus(t, mustVerify(t, k, sig, other, nil), BadSignature)
				}

				clear := g.gpg(msg, "--local-user", user, "--clear-sign")
				res, err := k.VerifyClearsigned(clear, nil)
				if err != nil {
					t.Fatal(err)
				}
				wantStatus(t, res, Valid)
				// gpg leaves carriage returns before line feeds where they are.
				said := g.gpg(clear, "--decrypt")
				if want := canonicalText(said); !bytes.Equal(res.Text, want) {
					t.Errorf("text %q, want %q", res.Text, want)
				}
				if want := canonicalText(msg); !bytes.Equal(res.Text, want) {
					t.Errorf("text %q, want %q", res.Text, want)
				}
			})
		}
	}
}

// TestTextmode: GnuPG and we agree about line ends, also where we made the
// change: a signature over one form is over all its equivalents.
func TestTextmode(t *testing.T) {
	g := newGnupg(t)
	g.generate("ed", "ed25519", "sign", "never")
	keys := g.gpg(nil, "--export")
	k := mustRing(t, keys)
	for _, c := range texts {
		sig := g.gpg([]byte(c.text), "--detach-sign", "--textmode")
		for _, d := range texts {
			res := mustVerify(t, k, sig, []byte(d.text), nil)
			gpgv := g.statuses(keys, sig, []byte(d.text))
			if got, want := res.Signatures[0].Status == Valid, gpgv[0] == "GOODSIG"; got != want {
				t.Errorf("signature over %q on %q: %v, gpgv %v", c.text, d.text, res.Signatures[0].Status, gpgv)
			}
		}
	}
}

// TestSignGPG: gpg and gpgv accept our signatures.
func TestSignGPG(t *testing.T) {
	g := newGnupg(t)
	g.generate("rsa3072", "rsa3072", "sign", "never")
	g.generate("rsa4096", "rsa4096", "sign", "never")
	g.generate("ed", "ed25519", "sign", "never")
	g.generate("p384", "nistp384", "sign", "never")
	sub := g.generate("subkey", "ed25519", "cert", "never")
	g.gpg(nil, "--quick-add-key", sub, "rsa2048", "sign", "never")
	g.gpg(nil, "--quick-add-key", sub, "cv25519", "encr", "never")
	at := time.Now().Add(2 * time.Second).Truncate(time.Second).UTC()
	for _, user := range []string{"rsa3072", "rsa4096", "ed", "p384", "subkey"} {
		t.Run(user, func(t *testing.T) {
			g.t = t
			secret := g.gpg(nil, "--export-secret-keys", "--armor", user+"@example.org")
			public := g.gpg(nil, "--export", user+"@example.org")
			s, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Time: at})
			if err != nil {
				t.Fatal(err)
			}
			fps := g.fingerprints(user)
			want := fps[0]
			if user == "subkey" {
				want = fps[1]
			}
			if s.Fingerprint() != want || s.Key().Fingerprint != fps[0] {
				t.Errorf("signs with %s of %s, want %s", s.Fingerprint(), s.Key().Fingerprint, want)
			}
			k := mustRing(t, public)
			for _, c := range texts {
				msg := []byte(c.text)
				sig, err := s.DetachSign(t.Context(), bytes.NewReader(msg))
				if err != nil {
					t.Fatal(err)
				}
				if got := g.statuses(public, sig, msg); len(got) != 1 || got[0] != "GOODSIG" {
					t.Errorf("%s: gpgv says %v", c.name, got)
				}
				res := mustVerify(t, k, sig, msg, &Policy{At: at})
				wantStatus(t, res, Valid)
				if !res.Signatures[0].Time.Equal(at) {
					t.Errorf("made at %v, want %v", res.Signatures[0].Time, at)
				}

				clear, err := s.ClearSign(t.Context(), msg)
				if err != nil {
					t.Fatal(err)
				}
				if got := g.statuses(public, clear, nil); len(got) != 1 || got[0] != "GOODSIG" {
					t.Errorf("%s: gpgv says %v of\n%s", c.name, got, clear)
				}
				if !IsClearsigned(clear) || IsClearsigned(sig) {
					t.Error("IsClearsigned is wrong")
				}
				res, err = k.VerifyClearsigned(clear, &Policy{At: at})
				if err != nil {
					t.Fatal(err)
				}
				wantStatus(t, res, Valid)
				if want := canonicalText(msg); !bytes.Equal(res.Text, want) {
					t.Errorf("%s: text %q, want %q", c.name, res.Text, want)
				}

				again, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Time: at, Key: want})
				if err != nil {
					t.Fatal(err)
				}
				sig2, _ := again.DetachSign(t.Context(), bytes.NewReader(msg))
				clear2, _ := again.ClearSign(t.Context(), msg)
				if user != "p384" && (!bytes.Equal(sig, sig2) || !bytes.Equal(clear, clear2)) {
					t.Errorf("%s: not the same bytes again", c.name)
				}
			}
			gpg := g.gpg(nil, "--status-fd", "1", "--verify", g.dir+"/m.sig")
			if !strings.Contains(string(gpg), "VALIDSIG "+want) {
				t.Errorf("gpg --verify says %s", gpg)
			}
		})
	}
}

// TestPassphrase: keys locked by GnuPG open with the right passphrase only.
func TestPassphrase(t *testing.T) {
	g := newGnupg(t)
	g.gpg(nil, "--passphrase", "correct horse", "--quick-gen-key", "Locked <locked@example.org>", "rsa2048", "sign", "never")
	secret := g.gpg(nil, "--passphrase", "correct horse", "--export-secret-keys")
	public := g.gpg(nil, "--export")
	calls := 0
	give := func(s string) func() ([]byte, error) {
		return func() ([]byte, error) { calls++; return []byte(s), nil }
	}
	for _, c := range []struct {
		pass func() ([]byte, error)
		ok   bool
	}{{nil, false}, {give("wrong"), false}, {give(""), false}, {give("correct horse"), true}} {
		calls = 0
		s, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Passphrase: c.pass})
		if (err == nil) != c.ok || !c.ok && !isPassphrase(err) {
			t.Fatalf("error %v, want success %v", err, c.ok)
		}
		if c.pass != nil && calls != 1 {
			t.Errorf("passphrase asked %d times", calls)
		}
		if c.ok {
			sig, err := s.DetachSign(t.Context(), strings.NewReader("m"))
			if err != nil {
				t.Fatal(err)
			}
			if got := g.statuses(public, sig, []byte("m")); len(got) != 1 || got[0] != "GOODSIG" {
				t.Errorf("gpgv says %v", got)
			}
		}
	}
}

// TestGPGSigner signs through gpg itself.
func TestGPGSigner(t *testing.T) {
	g := newGnupg(t)
	fp := g.generate("ed", "ed25519", "sign", "never")
	g.generate("other", "ed25519", "sign", "never")
	k := g.ring()
	at := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
	s, err := NewGPG(&GPGOptions{Home: g.home, Key: fp, Time: at})
	if err != nil {
		t.Fatal(err)
	}
	p := &Policy{At: at, Trusted: []string{fp}}
	msg := []byte("- one \ntwo")
	sig, err := s.DetachSign(t.Context(), bytes.NewReader(msg))
	if err != nil {
		t.Fatal(err)
	}
	res := mustVerify(t, k, sig, msg, p)
	if err := res.Err(); err != nil || !res.Signatures[0].Time.Equal(at) || res.Signatures[0].Hash != "SHA512" {
		t.Errorf("%v, %v", res.Signatures[0].String(), err)
	}
	again, err := s.DetachSign(t.Context(), bytes.NewReader(msg))
	if err != nil || !bytes.Equal(sig, again) {
		t.Errorf("not the same bytes again: %v", err)
	}
	clear, err := s.ClearSign(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	res, err = k.VerifyClearsigned(clear, p)
	if err != nil || res.Err() != nil || string(res.Text) != "- one\ntwo\n" {
		t.Errorf("%v, %v", res, err)
	}

	if _, err := s.DetachSign(t.Context(), testFaulty{}); err == nil || !strings.Contains(err.Error(), testimg.ErrInjected.Error()) {
		t.Errorf("faulty message: %v", err)
	}
	bad, err := NewGPG(&GPGOptions{Home: g.home, Key: "nobody@example.org"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.DetachSign(t.Context(), bytes.NewReader(msg)); err == nil || !strings.Contains(err.Error(), "No secret key") {
		t.Errorf("unknown key: %v", err)
	}
	if _, err := NewGPG(&GPGOptions{Program: g.dir + "/no-gpg"}); err == nil {
		t.Error("a program that does not exist was found")
	}
	if _, err := NewGPG(&GPGOptions{Key: "--output"}); err == nil {
		t.Error("a key that is an option was accepted")
	}
}

// TestKeybox reads GnuPG's own store.
func TestKeybox(t *testing.T) {
	g := newGnupg(t)
	fp := g.generate("ed", "ed25519", "sign", "never")
	g.generate("rsa", "rsa2048", "sign", "2y")
	b, err := os.ReadFile(filepath.Join(g.home, "pubring.kbx"))
	if err != nil {
		t.Fatal(err)
	}
	k := mustRing(t, b)
	if k.Len() != 2 || k.Keys()[0].Fingerprint != fp || len(k.Problems()) != 0 {
		t.Fatalf("keys %+v", k.Keys())
	}
	wantStatus(t, mustVerify(t, k, g.gpg([]byte("m"), "--detach-sign"), []byte("m"), nil), Valid)
	for n := range len(b) {
		cut := new(Keyring)
		if err := cut.Read(bytes.NewReader(b[:n])); err == nil && cut.Len() == 2 {
			t.Fatalf("cut at %d of %d is read whole", n, len(b))
		}
	}
	if err := new(parser).file(b); err != nil {
		t.Error(err)
	}
	if _, err := ReadSigner(bytes.NewReader(b), nil); !isUnsupported(err) {
		t.Errorf("signer from a keybox: %v", err)
	}
}
