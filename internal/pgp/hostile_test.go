package pgp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"runtime"
	"strings"
	"testing"

	"imgmaint/formats"
	"imgmaint/internal/testimg"
)

// masks are the ways a byte is changed: a low bit, the high bit, the case bit,
// what makes a carriage return of a line feed, the bit between old and new
// packet headers, and all bits.
var masks = []byte{0x01, 0x80, 0x20, 0x07, 0x40, 0xff}

// dearmored returns the bytes in an armored block.
func dearmored(t testing.TB, b []byte) []byte {
	t.Helper()
	l := &lines{b: b}
	line, _, _ := l.next()
	typ, ok := armorLine(line)
	if !ok {
		t.Fatalf("no armor: %q", line)
	}
	out, err := dearmor(l, typ)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFlippedByte changes every byte of a message, of its signature and of the
// key in turn: none may verify.
func TestFlippedByte(t *testing.T) {
	s, public := generated(t)
	ring := mustRing(t, public)
	msg := []byte("manifest\nof\tsome - lines\n")
	sig := detach(t, s, msg)
	clear, err := s.ClearSign(t.Context(), []byte("one\n- two\nthree"))
	if err != nil {
		t.Fatal(err)
	}
	verify := func(ring *Keyring, sig, msg []byte) bool {
		res, err := ring.Verify(sig, bytes.NewReader(msg), nil)
		return err == nil && (res.Trusted || res.Signatures[0].Status == Valid)
	}
	keyed := func(b []byte) bool {
		ring := new(Keyring)
		return ring.Read(bytes.NewReader(b)) == nil && verify(ring, sig, msg)
	}
	cases := []struct {
		name string
		b    []byte
		ok   func(b []byte) bool
	}{
		{"message", msg, func(b []byte) bool { return verify(ring, sig, b) }},
		{"armored signature", sig, func(b []byte) bool { return verify(ring, b, msg) }},
		{"binary signature", dearmored(t, sig), func(b []byte) bool { return verify(ring, b, msg) }},
		{"armored key", public, keyed},
		{"binary key", dearmored(t, public), keyed},
		{"clear-signed", clear, func(b []byte) bool {
			res, err := ring.VerifyClearsigned(b, nil)
			return err == nil && (res.Trusted || res.Signatures[0].Status == Valid)
		}},
	}
	for _, c := range cases {
		if !c.ok(c.b) {
			t.Fatalf("%s does not verify unchanged", c.name)
		}
		for i := range c.b {
			for _, mask := range masks {
				b := bytes.Clone(c.b)
				b[i] ^= mask
				if c.ok(b) && !(i == len(c.b)-1 && b[i] == '\r') { // white space at the end of a file
					t.Errorf("%s: byte %d (%q) ^ 0x%02x still verifies", c.name, i, c.b[i], mask)
				}
			}
		}
		for n := range c.b {
			if c.ok(c.b[:n]) && strings.TrimSpace(string(c.b[n:])) != "" {
				t.Errorf("%s: cut at %d still verifies", c.name, n)
			}
		}
	}
}

// TestFlippedByteGPG does the same to what GnuPG made.
func TestFlippedByteGPG(t *testing.T) {
	g := newGnupg(t)
	g.generate("rsa", "rsa2048", "sign", "never")
	msg := []byte("message\n")
	keys := g.gpg(nil, "--export")
	sig := g.gpg(msg, "--detach-sign")
	ring := mustRing(t, keys)
	wantStatus(t, mustVerify(t, ring, sig, msg, nil), Valid)
	for i := range sig {
		b := bytes.Clone(sig)
		b[i] ^= masks[i%len(masks)]
		if res, err := ring.Verify(b, bytes.NewReader(msg), nil); err == nil && res.Signatures[0].Status == Valid {
			t.Errorf("signature byte %d ^ 0x%02x still verifies", i, masks[i%len(masks)])
		}
	}
	for i := range keys {
		b := bytes.Clone(keys)
		b[i] ^= masks[i%len(masks)]
		k := new(Keyring)
		if k.Read(bytes.NewReader(b)) != nil {
			continue
		}
		if res, err := k.Verify(sig, bytes.NewReader(msg), nil); err == nil && res.Signatures[0].Status == Valid {
			t.Errorf("key byte %d ^ 0x%02x still verifies", i, masks[i%len(masks)])
		}
	}
}

func class(err error) error {
	for _, c := range []error{formats.ErrCorrupt, formats.ErrLimit, formats.ErrUnknown, errors.ErrUnsupported, testimg.ErrInjected} {
		if errors.Is(err, c) {
			return c
		}
	}
	return err
}

// TestHostile has one line for each trick; every one ends in the right class of
// error, and within 8 MiB more than the input.
func TestHostile(t *testing.T) {
	s, public := generated(t)
	ring := mustRing(t, public)
	sig := dearmored(t, detach(t, s, []byte("m")))
	key := dearmored(t, public)
	armored := func(b []byte) []byte { return enarmor(armorSignature, b) }
	clear, err := s.ClearSign(t.Context(), []byte("one\n"))
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte { return bytes.Replace(clear, []byte(old), []byte(new), 1) }
	pub := key[:bytes.Index(key, []byte("Test <"))-2]
	big := func(n int) []byte { return bytes.Repeat([]byte{0}, n) }

	verify := func(b []byte) error { _, err := ring.Verify(b, strings.NewReader("m"), nil); return err }
	clearsigned := func(b []byte) error { _, err := ring.VerifyClearsigned(b, nil); return err }
	keys := func(b []byte) error { return new(Keyring).Read(bytes.NewReader(b)) }
	secret := func(b []byte) error { _, err := ReadSigner(bytes.NewReader(b), nil); return err }

	for _, c := range []struct {
		name string
		do   func(b []byte) error
		b    []byte
		want error
	}{
		{"signature: empty", verify, nil, formats.ErrUnknown},
		{"signature: white space", verify, []byte(" \n\n"), formats.ErrUnknown},
		{"signature: text", verify, []byte("hello"), formats.ErrUnknown},
		{"signature: too large", verify, big(maxSignatureFile + 1), formats.ErrLimit},
		{"signature: too many", verify, bytes.Repeat(sig, maxSignatures+1), formats.ErrLimit},
		{"signature: compressed packet", verify, frame(tagCompressed, append([]byte{1}, sig...)), errors.ErrUnsupported},
		{"signature: compressed after a signature", verify, append(bytes.Clone(sig), frame(tagCompressed, []byte{0})...), errors.ErrUnsupported},
		{"signature: literal data", verify, frame(11, []byte("b\x00\x00\x00\x00\x00m")), formats.ErrCorrupt},
		{"signature: one-pass packet", verify, append(frame(4, big(13)), sig...), formats.ErrCorrupt},
		{"signature: key packet", verify, key, formats.ErrCorrupt},
		{"signature: marker of another kind", verify, append(frame(tagMarker, []byte("PGQ")), sig...), formats.ErrCorrupt},
		{"signature: only padding", verify, frame(tagPadding, big(8)), formats.ErrCorrupt},
		{"signature: partial length", verify, append([]byte{0xc2, 0xe1}, sig...), formats.ErrCorrupt},
		{"signature: indeterminate length", verify, append([]byte{0x8b}, sig...), formats.ErrCorrupt},
		{"signature: length past the end", verify, []byte{0xc2, 0xff, 0xff, 0xff, 0xff, 0xff, 4}, formats.ErrCorrupt},
		{"signature: length cut", verify, []byte{0xc2, 0xff, 0xff}, formats.ErrCorrupt},
		{"signature: two-octet length cut", verify, []byte{0xc2, 0xc0}, formats.ErrCorrupt},
		{"signature: old length cut", verify, []byte{0x89, 0}, formats.ErrCorrupt},
		{"signature: header only", verify, []byte{0xc2}, formats.ErrCorrupt},
		{"armor: no end", verify, []byte("-----BEGIN PGP SIGNATURE-----\n\nAAAA\n"), formats.ErrCorrupt},
		{"armor: no headers' end", verify, []byte("-----BEGIN PGP SIGNATURE-----\nVersion: 1\n"), formats.ErrCorrupt},
		{"armor: empty", verify, []byte("-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----\n"), formats.ErrCorrupt},
		{"armor: not base64", verify, []byte("-----BEGIN PGP SIGNATURE-----\n\nA*AA\n-----END PGP SIGNATURE-----\n"), formats.ErrCorrupt},
		{"armor: padding bits", verify, []byte("-----BEGIN PGP SIGNATURE-----\n\nwh==\n-----END PGP SIGNATURE-----\n"), formats.ErrCorrupt},
		{"armor: wrong checksum", verify, bytes.Replace(armored(sig), []byte("\n="+checksum(sig)), []byte("\n=AAAA"), 1), formats.ErrCorrupt},
		{"armor: text after the checksum", verify, bytes.Replace(armored(sig), []byte("\n-----END"), []byte("\nAAAA\n-----END"), 1), formats.ErrCorrupt},
		{"armor: another end", verify, bytes.Replace(armored(sig), []byte("END PGP SIGNATURE"), []byte("END PGP MESSAGE"), 1), formats.ErrCorrupt},
		{"armor: of a message", verify, enarmor("PGP MESSAGE", sig), formats.ErrCorrupt},
		{"armor: of a key", verify, public, formats.ErrCorrupt},
		{"armor: two blocks", verify, append(armored(sig), armored(sig)...), formats.ErrCorrupt},
		{"armor: text before", verify, append([]byte("hello\n"), armored(sig)...), formats.ErrUnknown},
		{"armor: text after", verify, append(armored(sig), "hello\n"...), formats.ErrCorrupt},
		{"armor: megabytes of header", verify, []byte("-----BEGIN PGP SIGNATURE-----\nComment: " + strings.Repeat("x", maxSignatureFile)), formats.ErrLimit},

		{"clear-signed: empty", clearsigned, nil, formats.ErrUnknown},
		{"clear-signed: too large", clearsigned, big(maxCleartext + 1), formats.ErrLimit},
		{"clear-signed: text before", clearsigned, append([]byte("Origin: evil\n"), clear...), formats.ErrUnknown},
		{"clear-signed: text after", clearsigned, append(bytes.Clone(clear), "Origin: evil\n"...), formats.ErrCorrupt},
		{"clear-signed: twice", clearsigned, append(bytes.Clone(clear), clear...), formats.ErrCorrupt},
		{"clear-signed: line not escaped", clearsigned, replace("\none", "\n-one"), formats.ErrCorrupt},
		{"clear-signed: lone dash", clearsigned, replace("\none", "\n-"), formats.ErrCorrupt},
		{"clear-signed: message in the message", clearsigned, replace("\none", "\n-----BEGIN PGP SIGNED MESSAGE-----"), formats.ErrCorrupt},
		{"clear-signed: other header", clearsigned, replace("Hash: SHA256", "Comment: x"), formats.ErrCorrupt},
		{"clear-signed: header is text", clearsigned, replace("Hash: SHA256", "Origin: evil"), formats.ErrCorrupt},
		{"clear-signed: unknown hash", clearsigned, replace("SHA256", "SHA5"), formats.ErrCorrupt},
		{"clear-signed: many hashes", clearsigned, replace("SHA256", "SHA256"+strings.Repeat(",SHA256", 99)), formats.ErrLimit},
		{"clear-signed: no signature", clearsigned, clear[:bytes.Index(clear, []byte(sigBegin))], formats.ErrCorrupt},
		{"clear-signed: no text", clearsigned, []byte(clearBegin + "\n"), formats.ErrCorrupt},
		{"clear-signed: compressed signature", clearsigned, writeCleartext(hashSHA512, []byte("one\n"), frame(tagCompressed, sig)), errors.ErrUnsupported},

		{"keys: empty", keys, nil, formats.ErrUnknown},
		{"keys: text", keys, []byte("hello\n"), formats.ErrUnknown},
		{"keys: signature first", keys, sig, formats.ErrCorrupt},
		{"keys: armored signature", keys, armored(sig), formats.ErrCorrupt},
		{"keys: compressed", keys, frame(tagCompressed, key), errors.ErrUnsupported},
		{"keys: literal data", keys, append(bytes.Clone(key), frame(11, []byte("b\x00\x00\x00\x00\x00m"))...), formats.ErrCorrupt},
		{"keys: no material", keys, frame(tagPublicKey, []byte{4, 0, 0, 0, 0, algRSA}), formats.ErrCorrupt},
		{"keys: empty packet", keys, frame(tagPublicKey, nil), formats.ErrCorrupt},
		{"keys: huge integer", keys, frame(tagPublicKey, []byte{4, 0, 0, 0, 0, algRSA, 0xff, 0xff, 0xff}), formats.ErrCorrupt},
		{"keys: version 6 length", keys, frame(tagPublicKey, []byte{6, 0, 0, 0, 0, algEd25519, 0xff, 0xff, 0xff, 0xff}), formats.ErrCorrupt},
		{"keys: packet too large", keys, frame(tagPublicKey, append([]byte{4}, big(maxKeyBody)...)), formats.ErrLimit},
		{"keys: skipped packet too large", keys, append(bytes.Clone(key), frame(60, big(maxPacketBody+1))...), formats.ErrLimit},
		{"keys: user id too long", keys, append(bytes.Clone(pub), frame(tagUserID, big(maxUserID+1))...), formats.ErrLimit},
		{"keys: too many user ids", keys, append(bytes.Clone(pub), bytes.Repeat(frame(tagUserID, nil), maxPerKey+1)...), formats.ErrLimit},
		{"keys: too many subkeys", keys, append(bytes.Clone(pub), bytes.Repeat(append([]byte{0xc0 | tagPublicSubkey, byte(len(pub) - 2)}, pub[2:]...), maxPerKey+1)...), formats.ErrLimit},
		{"keys: too many self-signatures", keys, append(bytes.Clone(pub), bytes.Repeat(frame(tagSignature, []byte{4, sigDirectKey, 22, 10, 0, 0, 0, 0, 0, 0}), maxSelfSignatures+1)...), formats.ErrLimit},
		{"keys: too many", keys, bytes.Repeat(pub, maxKeys+1), formats.ErrLimit},
		{"keys: too many packets", keys, append(bytes.Clone(pub), bytes.Repeat([]byte{0xc0 | tagTrust, 0}, maxPackets)...), formats.ErrLimit},
		{"keybox: cut", keys, []byte("\x00\x00\x00\x20\x01\x01\x00\x00KBXf"), formats.ErrCorrupt},
		{"keybox: blob of nothing", keys, append([]byte("\x00\x00\x00\x0c\x01\x01\x00\x00KBXf"), 0, 0, 0, 0, 2), formats.ErrCorrupt},
		{"keybox: key outside its blob", keys, append([]byte("\x00\x00\x00\x0c\x01\x01\x00\x00KBXf"), 0, 0, 0, 16, 2, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff), formats.ErrCorrupt},

		{"secret: public key", secret, public, errors.ErrUnsupported},
		{"secret: usage unknown", secret, frame(tagSecretKey, append(bytes.Clone(pub[2:]), 9)), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := c.do(c.b)
			runtime.ReadMemStats(&after)
			if err == nil || c.want != nil && class(err) != c.want {
				t.Errorf("error %v, want class %v", err, c.want)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > uint64(4*len(c.b)+8<<20) {
				t.Errorf("%d bytes allocated for %d of input", used, len(c.b))
			}
		})
	}

	t.Run("keyring over its size", func(t *testing.T) {
		err := new(Keyring).Read(endless{})
		if !errors.Is(err, formats.ErrLimit) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("integers", func(t *testing.T) {
		for _, c := range []struct {
			b    string
			bits int
			bad  bool
		}{
			{"\x00\x00", 0, false},
			{"\x00\x01\x01", 1, false},
			{"\x00\x08\x01", 8, false}, // GnuPG's octet strings
			{"\x00\x07\x01", 0, true},
			{"\x00\x02\x01", 0, true},
			{"\x00\x01\x03", 0, true},
			{"\x00\x09\x01\xff", 9, false},
			{"\x00\x09\x01", 0, true},
			{"\x00", 0, true},
			{"\xff\xff\x7f", 0, true},
		} {
			f := &fields{b: []byte(c.b)}
			if bits, _ := f.mpi(); bits != c.bits || f.bad != c.bad {
				t.Errorf("%x: %d bits, bad %v; want %d, %v", c.b, bits, f.bad, c.bits, c.bad)
			}
		}
	})
	t.Run("modulus of 65,535 bits", func(t *testing.T) {
		n := append([]byte{0xff, 0xff, 0x7f}, bytes.Repeat([]byte{0xff}, 8191)...)
		body := append(append([]byte{4, 0, 0, 0, 1, algRSA}, n...), 0, 17, 1, 0, 1)
		k := mustRing(t, frame(tagPublicKey, body))
		if got := k.Keys()[0].Invalid; got != "key of 65535 bits" {
			t.Errorf("invalid for %q", got)
		}
	})
	t.Run("endless message", func(t *testing.T) {
		// Nothing is read for a signature that no key of ours can have made.
		stranger, _ := generated(t)
		res, err := ring.Verify(detach(t, stranger, []byte("m")), testFaulty{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		wantStatus(t, res, UnknownKey)
	})
}

// endless gives armor without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '\n'
	}
	return len(p), nil
}

// TestPanic: a panic of the library is an error.
func TestPanic(t *testing.T) {
	err := guard("key", func() error { panic("index out of range") })
	if !errors.Is(err, formats.ErrCorrupt) || !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("error %v", err)
	}
}

// TestReaderFails: a fault in the message or in a key file is reported as such.
func TestReaderFails(t *testing.T) {
	s, public := generated(t)
	ring := mustRing(t, public)
	sig := detach(t, s, []byte("m"))
	if _, err := ring.Verify(sig, testFaulty{}, nil); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("Verify: %v", err)
	}
	if _, err := s.DetachSign(t.Context(), testFaulty{}); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("DetachSign: %v", err)
	}
	k := mustRing(t, public)
	if err := k.Read(testFaulty{}); !errors.Is(err, testimg.ErrInjected) || k.Len() != 1 {
		t.Errorf("Read: %v, %d keys", err, k.Len())
	}
	if _, err := ReadSigner(testFaulty{}, nil); !errors.Is(err, testimg.ErrInjected) {
		t.Errorf("ReadSigner: %v", err)
	}
}

// TestArmor reads the forms that other programs write.
func TestArmor(t *testing.T) {
	s, public := generated(t)
	ring := mustRing(t, public)
	sig := dearmored(t, detach(t, s, []byte("m")))
	b64 := base64.StdEncoding.EncodeToString(sig)
	for name, b := range map[string]string{
		"one line":          "-----BEGIN PGP SIGNATURE-----\n\n" + b64 + "\n-----END PGP SIGNATURE-----\n",
		"no final newline":  "-----BEGIN PGP SIGNATURE-----\n\n" + b64 + "\n-----END PGP SIGNATURE-----",
		"CRLF":              "-----BEGIN PGP SIGNATURE-----\r\n\r\n" + b64[:60] + "\r\n" + b64[60:] + "\r\n=" + checksum(sig) + "\r\n-----END PGP SIGNATURE-----\r\n",
		"headers":           "-----BEGIN PGP SIGNATURE-----\nVersion: GnuPG v1.4.12 (GNU/Linux)\nComment: a: b\n\n" + b64 + "\n-----END PGP SIGNATURE-----\n",
		"white space":       "\n \n-----BEGIN PGP SIGNATURE----- \n \n" + b64 + " \t\n-----END PGP SIGNATURE-----\n\n",
		"binary":            string(sig),
		"binary, padding":   string(append(frame(tagPadding, []byte("xyz")), sig...)),
		"binary and marker": string(append(frame(tagMarker, []byte("PGP")), sig...)),
	} {
		wantStatus(t, mustVerify(t, ring, []byte(b), []byte("m"), nil), Valid)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	two := append([]byte("Keys of somebody.\n\n"), public...)
	_, other, err := Generate("Other", "other@example.org", craftTime)
	if err != nil {
		t.Fatal(err)
	}
	two = append(append(two, "\nand another\n"...), other...)
	if k := mustRing(t, two); k.Len() != 2 {
		t.Errorf("%d keys of two blocks", k.Len())
	}
	if got := checksum([]byte("123456789")); got != base64.StdEncoding.EncodeToString([]byte{0x21, 0xcf, 0x02}) {
		t.Errorf("CRC-24 is %s", got) // the check value of CRC-24/OPENPGP is 0x21CF02
	}
}
