package pgp

import (
	"bytes"
	"encoding/json"
	"testing"
)

// seeds are a key, a signature, a clear-signed message and a secret key.
func seeds(t testing.TB) (public, sig, clear, secret []byte) {
	t.Helper()
	secret, public, err := Generate("Seed", "seed@example.org", craftTime)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ReadSigner(bytes.NewReader(secret), nil)
	if err != nil {
		t.Fatal(err)
	}
	sig = detach(t, s, []byte("m"))
	if clear, err = s.ClearSign(t.Context(), []byte("- one \ntwo")); err != nil {
		t.Fatal(err)
	}
	return public, sig, clear, secret
}

// FuzzVerify: any signature over any message, by a key that never signed it.
func FuzzVerify(f *testing.F) {
	public, sig, clear, _ := seeds(f)
	l := &lines{b: sig}
	l.next()
	bin, err := dearmor(l, armorSignature)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sig, []byte("x"))
	f.Add(bin, []byte("x\r\ny"))
	f.Add(append(bytes.Clone(bin), bin...), []byte(""))
	f.Add(clear, []byte("x"))
	ring := mustRing(f, public)
	f.Fuzz(func(t *testing.T, sig, msg []byte) {
		if len(sig) > 1<<16 {
			return
		}
		res, err := ring.Verify(sig, bytes.NewReader(msg), nil)
		if (res == nil) != (err != nil) {
			t.Fatalf("result %v and error %v", res, err)
		}
		if res != nil {
			if string(msg) != "m" && res.Err() == nil {
				t.Fatal("forged")
			}
			if _, err := json.Marshal(res); err != nil {
				t.Fatal(err)
			}
		}
		res, err = ring.VerifyClearsigned(sig, nil)
		if (res == nil) != (err != nil) {
			t.Fatalf("clear-signed: result %v and error %v", res, err)
		}
		if res != nil && res.Err() == nil && string(res.Text) != "- one\ntwo\n" {
			t.Fatalf("forged: %q", res.Text)
		}
	})
}

// FuzzKeyring: any file of keys, then a signature that one of them may have made.
func FuzzKeyring(f *testing.F) {
	public, sig, _, secret := seeds(f)
	for _, b := range [][]byte{public, secret, dearmored(f, public), []byte("\x00\x00\x00\x0c\x01\x01\x00\x00KBXf\x00\x00\x00\x10\x02\x01\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00")} {
		f.Add(b)
	}
	key := craftKey(f)
	f.Add(join(f, &key.PublicKey, selfSig(f, key, nil)))
	want := mustRing(f, public).Keys()[0].Fingerprint
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		k, err := ReadKeyring(bytes.NewReader(b))
		if (k == nil) != (err != nil) {
			t.Fatalf("keyring %v and error %v", k, err)
		}
		if k != nil {
			if _, err := json.Marshal(k.Keys()); err != nil {
				t.Fatal(err)
			}
			res, err := k.Verify(sig, bytes.NewReader([]byte("m")), nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.Trusted && res.Signatures[0].Primary != want && res.Signatures[0].Fingerprint != want {
				t.Fatal("forged")
			}
		}
		if s, err := ReadSigner(bytes.NewReader(b), &SignerOptions{Passphrase: func() ([]byte, error) { return []byte("x"), nil }}); err == nil {
			if _, err := s.DetachSign(t.Context(), bytes.NewReader(nil)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzCleartext: what ClearSign writes is read back as the text it was given.
func FuzzCleartext(f *testing.F) {
	public, _, _, secret := seeds(f)
	for _, c := range texts {
		f.Add([]byte(c.text))
	}
	ring := mustRing(f, public)
	s, err := ReadSigner(bytes.NewReader(secret), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		clear, err := s.ClearSign(t.Context(), text)
		if err != nil {
			if len(text) < maxSignedLine {
				t.Fatal(err)
			}
			return
		}
		res, err := ring.VerifyClearsigned(clear, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Err(); err != nil {
			t.Fatal(err)
		}
		if want := canonicalText(text); !bytes.Equal(res.Text, want) {
			t.Fatalf("text %q, want %q", res.Text, want)
		}
	})
}

// FuzzText: the filter for text signatures does not depend on how its input is
// cut, and agrees with doing it line by line.
func FuzzText(f *testing.F) {
	for _, c := range texts {
		f.Add([]byte(c.text), 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, n int) {
		n = 1 + (n&0x7fffffff)%7
		var got, want bytes.Buffer
		w := &textWriter{w: &got}
		for rest := text; len(rest) > 0; {
			k := min(n, len(rest))
			w.Write(rest[:k])
			rest = rest[k:]
		}
		for line := range bytes.Lines(text) {
			cut, ended := bytes.CutSuffix(line, []byte("\n"))
			want.Write(bytes.TrimRight(cut, "\r"))
			if ended {
				want.Write(crlf)
			}
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%q in pieces of %d: %q, want %q", text, n, got.Bytes(), want.Bytes())
		}
	})
}
