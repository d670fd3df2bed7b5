package pgp

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func day(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return t
}

// TestStates brings every state about with GnuPG, and compares with what gpgv
// makes of the same files.
func TestStates(t *testing.T) {
	g := newGnupg(t)
	then := []string{"--faked-system-time", "20200101T000000"}
	later := []string{"--faked-system-time", "20200110T000000"}
	msg := []byte("message\n")
	sign := func(user string, args ...string) []byte {
		return g.gpg(msg, append(append([]string{"--local-user", user + "@example.org"}, args...), "--detach-sign")...)
	}

	g.generate("expired", "ed25519", "sign", "30d", then...)
	g.generate("fresh", "rsa2048", "sign", "never", then...)
	fp := g.generate("revoked", "ed25519", "sign", "never", then...)
	revokedSig := sign("revoked")
	revoke(g, fp)
	subs := g.generate("subs", "ed25519", "cert", "never", then...)
	g.gpg(nil, append(then, "--quick-add-key", subs, "ed25519", "sign", "30d")...)
	expiredSub := sign("subs", later...)
	g.gpg(nil, append(then, "--quick-add-key", subs, "rsa2048", "sign", "never")...)
	revokedSub := sign("subs", "--digest-algo", "SHA512")
	revokeSubkey(g, subs, 2)
	g.gpg(nil, append(then, "--quick-add-key", subs, "ed25519", "sign", "never")...)
	names := g.generate("names", "ed25519", "sign", "never", then...)
	g.gpg(nil, "--quick-add-uid", names, "Second <second@example.org>")
	g.gpg(nil, "--quick-revoke-uid", names, "names <names@example.org>")
	nameSig := g.gpg(msg, "--local-user", names, "--detach-sign")
	g.generate("short", "rsa1024", "sign", "never", then...)
	g.generate("dsa", "dsa2048", "sign", "never", then...)
	g.generate("unknown", "ed25519", "sign", "never", then...)

	keys := g.gpg(nil, "--export", "expired", "fresh", "revoked", "subs", "second", "short", "dsa")
	ring := mustRing(t, keys)
	for _, c := range []struct {
		name   string
		sig    []byte
		policy *Policy
		want   Status
		gpgv   string // "" when gpgv is not asked
		reason string
	}{
		{"valid", sign("fresh"), nil, Valid, "GOODSIG", ""},
		{"valid of a subkey", sign("subs"), nil, Valid, "GOODSIG", ""},
		{"valid of a second user id", nameSig, nil, Valid, "GOODSIG", ""},
		{"expired key", sign("expired", later...), nil, ExpiredKey, "EXPKEYSIG", ""},
		{"expired key, on its last day", sign("expired", later...), &Policy{At: day("2020-01-30")}, Valid, "", ""},
		{"expired key, the day after", sign("expired", later...), &Policy{At: day("2020-01-31")}, ExpiredKey, "", ""},
		{"expired subkey", expiredSub, nil, ExpiredKey, "EXPKEYSIG", ""},
		{"expired subkey, then", expiredSub, &Policy{At: day("2020-01-12")}, Valid, "", ""},
		{"expired signature", sign("fresh", append(later, "--default-sig-expire", "2d")...), nil, ExpiredSignature, "EXPSIG", ""},
		{"expired signature, then", sign("fresh", append(later, "--default-sig-expire", "2d")...), &Policy{At: day("2020-01-11")}, Valid, "", ""},
		{"revoked key", revokedSig, nil, RevokedKey, "REVKEYSIG", "no reason given"},
		{"revoked subkey", revokedSub, nil, RevokedKey, "REVKEYSIG", "subkey: no reason given"},
		{"SHA-1", sign("fresh", "--digest-algo", "SHA1"), nil, WeakDigest, "GOODSIG", "SHA1"},
		{"SHA-1 allowed", sign("fresh", "--digest-algo", "SHA1"), &Policy{AllowWeak: true}, Valid, "", ""},
		{"RIPEMD160", sign("fresh", "--digest-algo", "RIPEMD160"), &Policy{AllowWeak: true}, WeakDigest, "GOODSIG", "RIPEMD160"},
		{"short RSA", sign("short"), nil, WeakKey, "GOODSIG", "RSA of 1024 bits"},
		{"short RSA allowed", sign("short"), &Policy{AllowWeak: true}, Valid, "", ""},
		{"DSA", sign("dsa"), nil, WeakKey, "GOODSIG", "DSA"},
		{"DSA allowed", sign("dsa"), &Policy{AllowWeak: true}, Valid, "", ""},
		{"unknown", sign("unknown"), nil, UnknownKey, "ERRSIG", ""},
		{"future", sign("fresh", "--faked-system-time", "20380101T000000"), nil, NotYetValid, "GOODSIG", "made in the future"},
		{"future, then", sign("fresh", "--faked-system-time", "20380101T000000"), &Policy{At: day("2038-01-02")}, Valid, "", ""},
		{"older than its key", sign("fresh", "--faked-system-time", "20191201T000000", "--ignore-time-conflict"), nil, NotYetValid, "ERRSIG", "made before its key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.t = t
			res := mustVerify(t, ring, c.sig, msg, c.policy)
			wantStatus(t, res, c.want)
			if (res.Err() == nil) != (c.want == Valid) {
				t.Errorf("verdict %v", res.Err())
			}
			if r := res.Signatures[0].Reason; r != c.reason {
				t.Errorf("reason %q, want %q", r, c.reason)
			}
			if c.gpgv != "" {
				if got := g.statuses(keys, c.sig, msg); !slices.Equal(got, []string{c.gpgv}) {
					t.Errorf("gpgv says %v, want %v", got, c.gpgv)
				}
			}
			// A mismatch comes before whatever else is wrong.
			other := mustVerify(t, ring, c.sig, []byte("massage\n"), c.policy)
			switch want := c.want; {
			case want == UnknownKey, c.name == "RIPEMD160":
				wantStatus(t, other, want)
			default:
				wantStatus(t, other, BadSignature)
			}
		})
	}
	g.t = t

	t.Run("several", func(t *testing.T) {
		sig := g.gpg(msg, "--local-user", "fresh", "--local-user", "unknown", "--local-user", "short", "--local-user", "subs", "--detach-sign", "--armor")
		res := mustVerify(t, ring, sig, msg, nil)
		wantStatus(t, res, Valid, UnknownKey, WeakKey, Valid)
		if !res.Trusted {
			t.Error(res.Reason)
		}
		policies := []struct {
			p  Policy
			ok bool
		}{
			{Policy{Threshold: 2}, true},
			{Policy{Threshold: 3}, false},
			{Policy{Threshold: 3, AllowWeak: true}, true},
			{Policy{Trusted: []string{subs}}, true},
			{Policy{Trusted: []string{"0x" + strings.ToLower(subs[:20]) + " " + subs[20:]}}, true},
			{Policy{Trusted: g.fingerprints(subs)[3:4]}, true}, // the subkey that signed
			{Policy{Trusted: []string{subs}, Threshold: 2}, false},
			{Policy{Trusted: []string{names}}, false},
		}
		for i, c := range policies {
			res := mustVerify(t, ring, sig, msg, &c.p)
			if res.Trusted != c.ok || c.ok != (res.Err() == nil) || c.ok == (res.Reason != "") {
				t.Errorf("policy %d: trusted %v (%s), want %v", i, res.Trusted, res.Reason, c.ok)
			}
		}
		if _, err := ring.Verify(sig, bytes.NewReader(msg), &Policy{Trusted: []string{subs[24:]}}); err == nil {
			t.Error("a key id was taken for a fingerprint")
		}

		// A signature over something else spoils the set, as it does for gpgv.
		mixed := append(g.gpg(msg, "--local-user", "fresh", "--detach-sign"),
			g.gpg([]byte("other"), "--local-user", "subs", "--detach-sign")...)
		res = mustVerify(t, ring, mixed, msg, nil)
		wantStatus(t, res, Valid, BadSignature)
		if res.Trusted {
			t.Error("trusted beside a bad signature")
		}
	})

	t.Run("several clear-signed", func(t *testing.T) {
		clear := g.gpg(msg, "--local-user", "fresh", "--local-user", "short", "--clear-sign")
		res, err := ring.VerifyClearsigned(clear, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantStatus(t, res, Valid, WeakKey)
		// The header has to name the hash.
		lie := bytes.Replace(clear, []byte("Hash: SHA"), []byte("Hash: SHA1,SHA"), 1)
		if bytes.Equal(lie, clear) {
			t.Fatalf("no Hash header in %q", clear)
		}
		if res, err = ring.VerifyClearsigned(lie, nil); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, res, Valid, WeakKey)
		lie = bytes.Replace(clear, []byte("Hash: SHA"), []byte("Hash: SHA1\nX"), 1)
		lie = lie[:bytes.Index(lie, []byte("\nX"))+1]
		lie = append(lie, clear[bytes.Index(clear, []byte("\n\n"))+1:]...)
		if res, err = ring.VerifyClearsigned(lie, nil); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, res, BadSignature, BadSignature)
	})

	t.Run("keys", func(t *testing.T) {
		for _, key := range ring.Keys() {
			name, _, _ := strings.Cut(key.Name(), " ")
			want := map[string]string{
				"expired": "EdDSA 256 2020-01-31 true  ",
				"fresh":   "RSA 2048 never true  ",
				"revoked": "EdDSA 256 never true  no reason given",
				"subs":    "EdDSA 256 never false  ",
				"Second":  "EdDSA 256 never true  ",
				"short":   "RSA 1024 never true RSA of 1024 bits ",
				"dsa":     "DSA 2048 never true DSA ",
			}[name]
			expires := "never"
			if !key.Expires.IsZero() {
				expires = key.Expires.Format(time.DateOnly)
			}
			got := fmt.Sprintf("%s %d %s %v %s %s", key.Algorithm, key.Bits, expires, key.CanSign, key.Weak, key.Revoked)
			if got != want || key.Invalid != "" || !key.Created.Equal(day("2020-01-01")) {
				t.Errorf("%s: %q, want %q (%+v)", name, got, want, key)
			}
			if name == "subs" && (len(key.Subkeys) != 3 || key.Subkeys[0].Expires.IsZero() || key.Subkeys[1].Revoked == "" ||
				!key.Subkeys[2].CanSign || key.Subkeys[2].Invalid != "") {
				t.Errorf("subkeys %+v", key.Subkeys)
			}
			if name == "Second" && (len(key.UserIDs) != 2 || !slices.ContainsFunc(key.UserIDs, func(u UserID) bool { return u.Revoked && !u.Primary })) {
				t.Errorf("user ids %+v", key.UserIDs)
			}
		}
	})

	t.Run("revocation in another file", func(t *testing.T) {
		fresh := mustRing(t, g.gpg(nil, "--export", "unknown"))
		sig := sign("unknown")
		wantStatus(t, mustVerify(t, fresh, sig, msg, nil), Valid)
		before := g.gpg(nil, "--export", "unknown")
		revoke(g, g.fingerprints("unknown")[0])
		after := g.gpg(nil, "--export", "unknown")
		wantStatus(t, mustVerify(t, mustRing(t, before, after), sig, msg, nil), RevokedKey)
		wantStatus(t, mustVerify(t, mustRing(t, after, before), sig, msg, nil), RevokedKey)
		if n := mustRing(t, after, before, after).Len(); n != 1 {
			t.Errorf("%d keys after merging", n)
		}
	})

	t.Run("signer refuses", func(t *testing.T) {
		for user, want := range map[string]string{"expired": "expired", "revoked": "revoked", "short": "weak", "dsa": "weak"} {
			secret := g.gpg(nil, "--export-secret-keys", user+"@example.org")
			_, err := ReadSigner(bytes.NewReader(secret), nil)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", user, err, want)
			}
		}
		secret := g.gpg(nil, "--export-secret-keys", "expired@example.org")
		if _, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Time: day("2020-01-05")}); err != nil {
			t.Errorf("while it was good: %v", err)
		}
		two := g.gpg(nil, "--export-secret-keys", "fresh", "second")
		if _, err := ReadSigner(bytes.NewReader(two), nil); err == nil || !strings.Contains(err.Error(), "several") {
			t.Errorf("two keys: %v", err)
		}
		if s, err := ReadSigner(bytes.NewReader(two), &SignerOptions{Key: names[24:]}); err != nil || s.Fingerprint() != names {
			t.Errorf("by key id: %v", err)
		}
		for _, key := range []string{names[32:], "fresh@example.org", strings.Repeat("A", 40)} {
			if _, err := ReadSigner(bytes.NewReader(two), &SignerOptions{Key: key}); err == nil {
				t.Errorf("key %q was found", key)
			}
		}
		// The newest good subkey of three, without its primary key's secret.
		offline := g.gpg(nil, "--export-secret-subkeys", "subs")
		s, err := ReadSigner(bytes.NewReader(offline), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want := g.fingerprints(subs)[3]; s.Fingerprint() != want {
			t.Errorf("signs with %s, want %s", s.Fingerprint(), want)
		}
		sig, err := s.DetachSign(t.Context(), bytes.NewReader(msg))
		if err != nil {
			t.Fatal(err)
		}
		wantStatus(t, mustVerify(t, ring, sig, msg, nil), Valid)
		stub := g.gpg(nil, "--export-secret-subkeys", "fresh")
		if _, err := ReadSigner(bytes.NewReader(stub), nil); err == nil || !strings.Contains(err.Error(), "not in the file") {
			t.Errorf("stub: %v", err)
		}
		if _, err := ReadSigner(bytes.NewReader(keys), nil); !isUnsupported(err) {
			t.Errorf("public keys: %v", err)
		}
		if _, err := ReadKeyring(bytes.NewReader(two)); !isUnsupported(err) {
			t.Errorf("secret keys in a keyring: %v", err)
		}
	})
}

// revoke imports the revocation certificate that GnuPG made with the key.
func revoke(g *gnupg, fp string) {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", fp+".rev"))
	if err != nil {
		g.t.Fatal(err)
	}
	g.gpg(bytes.ReplaceAll(b, []byte(":-----"), []byte("-----")), "--import")
}

// revokeSubkey revokes the n-th subkey, from 1.
func revokeSubkey(g *gnupg, fp string, n int) {
	g.t.Helper()
	in := fmt.Sprintf("key %d\nrevkey\ny\n0\n\ny\nsave\n", n)
	if _, errs, err := g.try([]byte(in), "gpg", "--no-tty", "--yes", "--command-fd", "0", "--pinentry-mode", "loopback",
		"--passphrase", "", "--edit-key", fp); err != nil {
		g.t.Fatalf("revkey: %v\n%s", err, errs)
	}
}
