//go:build unix

package pgp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ProtonMail/go-crypto/openpgp/s2k"

	"imgmaint/formats"
)

// pipe returns the descriptor of a pipe that holds s.
func pipe(t *testing.T, s string) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(s); err != nil {
		t.Fatal(err)
	}
	w.Close()
	// The helper closes the descriptor; r must not close it a second time.
	fd, err := dup(r)
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestPassphraseSources(t *testing.T) {
	long := strings.Repeat("x", maxPassphrase)
	for in, want := range map[string]string{
		"secret":          "secret",
		"secret\n":        "secret",
		"secret\r\nnext":  "secret",
		"a b \n":          "a b ",
		"":                "",
		"\n":              "",
		long + "\n":       long,
		long + "\nsecond": long,
	} {
		got, err := PassphraseFromFD(pipe(t, in))()
		if err != nil || string(got) != want {
			t.Errorf("descriptor with %.20q: %.20q, %v", in, got, err)
		}
		t.Setenv("IMGMAINT_TEST_PASSPHRASE", in)
		got, err = PassphraseFromEnv("IMGMAINT_TEST_PASSPHRASE")()
		if err != nil || string(got) != want {
			t.Errorf("variable with %.20q: %.20q, %v", in, got, err)
		}
	}
	if _, err := PassphraseFromFD(pipe(t, long+"x\n"))(); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("too long: %v", err)
	}
	if _, err := PassphraseFromFD(-1)(); err == nil {
		t.Error("descriptor -1")
	}
	if _, err := PassphraseFromFD(999999)(); err == nil {
		t.Error("a descriptor that is not open")
	}
	if _, err := PassphraseFromEnv("IMGMAINT_TEST_NOT_SET")(); err == nil {
		t.Error("a variable that is not set")
	}
	want := errors.New("no terminal")
	secret := locked(t, &s2k.Config{S2KMode: s2k.IteratedSaltedS2K, S2KCount: 65536})
	_, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Passphrase: func() ([]byte, error) { return nil, want }})
	if !errors.Is(err, want) {
		t.Errorf("source that fails: %v", err)
	}
}

// locked returns a secret key locked with "x".
func locked(t testing.TB, cfg *s2k.Config) []byte {
	t.Helper()
	key := craftKey(t)
	uid := packet.NewUserId("Crafted", "", "crafted@example.org")
	self := selfSig(t, key, nil)
	c := craftConfig()
	c.S2KConfig = cfg
	if cfg.S2KMode == s2k.Argon2S2K {
		c.AEADConfig = &packet.AEADConfig{DefaultMode: packet.AEADModeOCB}
	}
	if err := key.EncryptWithConfig([]byte("x"), c); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := key.Serialize(&b); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), join(t, uid, self)...)
}

// TestArgon2: a passphrase function takes no more memory than we allow it.
func TestArgon2(t *testing.T) {
	for _, c := range []struct {
		kib  uint32
		want error
	}{{1 << 10, nil}, {1 << maxArgon2, nil}, {2 << maxArgon2, formats.ErrLimit}} {
		secret := locked(t, &s2k.Config{S2KMode: s2k.Argon2S2K,
			Argon2Config: &s2k.Argon2Config{NumberOfPasses: 1, DegreeOfParallelism: 1, Memory: 1 << 10}})
		if c.kib != 1<<10 { // the exponent follows salt, passes and parallelism
			i := bytes.Index(secret, []byte{1, 1, 10})
			if i < 0 {
				t.Fatal("no Argon2 parameters")
			}
			for secret[i+2] = 0; 1<<secret[i+2] < c.kib; secret[i+2]++ {
			}
		}
		_, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Passphrase: func() ([]byte, error) { return []byte("x"), nil }})
		switch {
		case c.want != nil:
			if !errors.Is(err, c.want) {
				t.Errorf("%d KiB: %v, want %v", c.kib, err, c.want)
			}
		case c.kib == 1<<10:
			if err != nil {
				t.Errorf("%d KiB: %v", c.kib, err)
			}
		default: // the key was not locked with that much
			if !errors.Is(err, ErrPassphrase) {
				t.Errorf("%d KiB: %v, want %v", c.kib, err, ErrPassphrase)
			}
		}
	}
}

func TestSourceDateEpoch(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1700000000": 1700000000, "4294967295": 4294967295} {
		t.Setenv("SOURCE_DATE_EPOCH", in)
		got, err := SourceDateEpoch()
		if err != nil || got.Unix() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"-1", "4294967296", "2026-01-01", " 1"} {
		t.Setenv("SOURCE_DATE_EPOCH", in)
		if got, err := SourceDateEpoch(); err == nil {
			t.Errorf("%q is %v", in, got)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	if got, err := SourceDateEpoch(); err != nil || !got.IsZero() {
		t.Errorf("empty: %v, %v", got, err)
	}
}

func TestStatusNames(t *testing.T) {
	for s := Unsupported; s <= NotForSigning; s++ {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Status
		if err := json.Unmarshal(b, &back); err != nil || back != s || s.String() == "" {
			t.Errorf("%d: %s, %v, %v", s, b, back, err)
		}
	}
	if err := new(Status).UnmarshalText([]byte("ok")); err == nil {
		t.Error("ok is a status")
	}
	if got := Status(200).String(); got != "status(200)" {
		t.Error(got)
	}
}

// TestJSON: the keys and forms are stable.
func TestJSON(t *testing.T) {
	key := craftKey(t)
	ring := mustRing(t, join(t, &key.PublicKey, packet.NewUserId("Crafted", "", "crafted@example.org"), selfSig(t, key, nil)))
	fp := upperHex(key.Fingerprint)
	res := mustVerify(t, ring, dataSig(t, key, "m", nil), []byte("m"), nil)
	got, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"signatures":[{"status":"valid","key-id":"` + fp[24:] + `","fingerprint":"` + fp + `","primary":"` + fp +
		`","user-id":"Crafted \u003ccrafted@example.org\u003e","algorithm":"EdDSA","bits":256,"hash":"SHA512","time":"2021-06-01T00:00:00Z"}],"trusted":true}`
	if string(got) != want {
		t.Errorf("result\n%s, want\n%s", got, want)
	}
	got, err = json.Marshal(ring.Keys())
	if err != nil {
		t.Fatal(err)
	}
	want = `[{"fingerprint":"` + fp + `","key-id":"` + fp[24:] + `","version":4,"algorithm":"EdDSA","curve":"Ed25519","bits":256,` +
		`"created":"2021-06-01T00:00:00Z","can-sign":true,"user-ids":[{"id":"Crafted \u003ccrafted@example.org\u003e","primary":true}]}]`
	if string(got) != want {
		t.Errorf("keys\n%s, want\n%s", got, want)
	}
	line := res.Signatures[0].String()
	if want := "valid: Crafted <crafted@example.org> (EdDSA 256, SHA512) 2021-06-01T00:00:00Z key " + fp; line != want {
		t.Errorf("%q, want %q", line, want)
	}
	none := mustVerify(t, new(Keyring), dataSig(t, key, "m", nil), nil, nil)
	if err := none.Err(); !errors.Is(err, ErrNotTrusted) || !strings.Contains(err.Error(), "unknown-key: (EdDSA, SHA512) 2021-06-01T00:00:00Z key "+fp) {
		t.Errorf("verdict %v", err)
	}
}

// TestGenerate: the key is what was asked for, and its time too.
func TestGenerate(t *testing.T) {
	at := day("2022-02-02")
	secret, public, err := Generate("Grace", "grace@example.org", at)
	if err != nil {
		t.Fatal(err)
	}
	key := mustRing(t, public).Keys()[0]
	if key.Name() != "Grace <grace@example.org>" || !key.Created.Equal(at) || key.Algorithm != "EdDSA" || key.Version != 4 ||
		!key.CanSign || len(key.Subkeys) != 0 || !key.Expires.IsZero() {
		t.Errorf("key %+v", key)
	}
	if _, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Time: at.Add(-time.Second)}); err == nil {
		t.Error("signs before it exists")
	}
	if _, _, err := Generate("a<b", "", at); err == nil {
		t.Error("a name with <")
	}
	g := newGnupg(t)
	g.gpg(secret, "--import")
	if fps := g.fingerprints("grace@example.org"); len(fps) != 1 || fps[0] != key.Fingerprint {
		t.Errorf("gpg lists %v", fps)
	}
	sig := g.gpg([]byte("m"), "--detach-sign")
	wantStatus(t, mustVerify(t, mustRing(t, public), sig, []byte("m"), nil), Valid)
}

// TestSignLimits: what could not be verified is not signed, and a cancelled
// signer stops.
func TestSignLimits(t *testing.T) {
	s, _ := generated(t)
	if _, err := s.ClearSign(t.Context(), []byte("a\n"+strings.Repeat("x", maxSignedLine+1))); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("long line: %v", err)
	}
	if _, err := s.ClearSign(t.Context(), make([]byte, maxCleartext/2+1)); !errors.Is(err, formats.ErrLimit) {
		t.Errorf("long text: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.DetachSign(ctx, endless{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.ClearSign(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestLongLine: a line as long as we sign is one that gpgv still verifies.
func TestLongLine(t *testing.T) {
	s, public := generated(t)
	clear, err := s.ClearSign(t.Context(), []byte(strings.Repeat("x", maxSignedLine)+"\nend\n"))
	if err != nil {
		t.Fatal(err)
	}
	g := newGnupg(t)
	if got := g.statuses(dearmored(t, public), clear, nil); len(got) != 1 || got[0] != "GOODSIG" {
		t.Errorf("gpgv says %v", got)
	}
}

// dup returns a second descriptor of a file.
func dup(f *os.File) (int, error) { return syscall.Dup(int(f.Fd())) }
