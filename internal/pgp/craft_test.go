package pgp

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
)

// Certificates and signatures that GnuPG does not make.

var craftTime = day("2021-06-01")

func craftConfig() *packet.Config {
	plain := false
	return &packet.Config{
		Algorithm:                             packet.PubKeyAlgoEdDSA,
		Time:                                  func() time.Time { return craftTime },
		NonDeterministicSignaturesViaNotation: &plain,
	}
}

func craftKey(t testing.TB) *packet.PrivateKey {
	t.Helper()
	e, err := openpgp.NewEntity("Crafted", "", "crafted@example.org", craftConfig())
	if err != nil {
		t.Fatal(err)
	}
	return e.PrivateKey
}

type raw []byte

// join writes packets one after the other.
func join(t testing.TB, parts ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		var err error
		switch p := p.(type) {
		case raw:
			b.Write(p)
		case *packet.PublicKey:
			err = p.Serialize(&b)
		case *packet.UserId:
			err = p.Serialize(&b)
		case *packet.Signature:
			err = p.Serialize(&b)
		default:
			t.Fatalf("%T", p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func newSig(typ packet.SignatureType, by *packet.PrivateKey) *packet.Signature {
	return &packet.Signature{Version: by.Version, SigType: typ, PubKeyAlgo: by.PubKeyAlgo, Hash: crypto.SHA512,
		CreationTime: craftTime, IssuerKeyId: &by.KeyId}
}

const craftUID = "Crafted <crafted@example.org>"

// selfSig certifies the user id, after edit.
func selfSig(t testing.TB, key *packet.PrivateKey, edit func(s *packet.Signature)) *packet.Signature {
	t.Helper()
	s := newSig(packet.SigTypePositiveCert, key)
	if edit != nil {
		edit(s)
	}
	if err := s.SignUserId(craftUID, &key.PublicKey, key, craftConfig()); err != nil {
		t.Fatal(err)
	}
	return s
}

// dataSig signs a message, after edit.
func dataSig(t testing.TB, key *packet.PrivateKey, msg string, edit func(s *packet.Signature)) []byte {
	t.Helper()
	s := newSig(packet.SigTypeBinary, key)
	if edit != nil {
		edit(s)
	}
	h, err := s.PrepareSign(craftConfig())
	if err != nil {
		t.Fatal(err)
	}
	h.Write([]byte(msg))
	if err := s.Sign(h, key, craftConfig()); err != nil {
		t.Fatal(err)
	}
	return join(t, s)
}

func TestCertificates(t *testing.T) {
	key, sub, other := craftKey(t), craftKey(t), craftKey(t)
	uid := packet.NewUserId("Crafted", "", "crafted@example.org")
	pub := &key.PublicKey
	subPub := sub.PublicKey
	subPub.IsSubkey = true

	bind := func(edit func(s *packet.Signature), back *packet.PrivateKey) *packet.Signature {
		s := newSig(packet.SigTypeSubkeyBinding, key)
		s.FlagsValid, s.FlagSign = true, true
		if back != nil {
			e := newSig(packet.SigTypePrimaryKeyBinding, back)
			if err := e.CrossSignKey(&sub.PublicKey, pub, back, craftConfig()); err != nil {
				t.Fatal(err)
			}
			s.EmbeddedSignature = e
		}
		if edit != nil {
			edit(s)
		}
		if err := s.SignKey(&sub.PublicKey, key, craftConfig()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	revocation := func(by *packet.PrivateKey) *packet.Signature {
		s := newSig(packet.SigTypeKeyRevocation, by)
		if err := s.RevokeKey(pub, by, craftConfig()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	entitle := func() raw { // a direct-key signature with a designated revoker
		s := newSig(packet.SigTypeDirectSignature, key)
		content := append([]byte{0x80, byte(other.PubKeyAlgo)}, other.Fingerprint...)
		return signHashed(t, key, s, subRevoker, content, nil)
	}
	sha1 := func(s *packet.Signature) { s.Hash = crypto.SHA1 }
	month := uint32(30 * 24 * 3600)
	older := func(s *packet.Signature) { s.CreationTime = craftTime.Add(-time.Hour) }
	direct := func(edit func(s *packet.Signature)) *packet.Signature {
		s := newSig(packet.SigTypeDirectSignature, key)
		edit(s)
		if err := s.SignDirectKeyBinding(pub, key, craftConfig()); err != nil {
			t.Fatal(err)
		}
		return s
	}

	bySub, byKey := dataSig(t, sub, "m", nil), dataSig(t, key, "m", nil)
	later := &Policy{At: craftTime.AddDate(0, 2, 0)}
	for _, c := range []struct {
		name string
		keys []byte
		sig  []byte
		want Status
		why  string
	}{
		{"self-signed", join(t, pub, uid, selfSig(t, key, nil)), byKey, Valid, ""},
		{"bare key", join(t, pub), byKey, UnknownKey, "no valid self-signature"},
		{"bare user id", join(t, pub, uid), byKey, UnknownKey, "no valid self-signature"},
		{"signature of another user id", join(t, pub, packet.NewUserId("Other", "", ""), selfSig(t, key, nil)), byKey, UnknownKey, "no valid self-signature"},
		{"signed by a stranger", join(t, pub, uid, selfSig(t, other, nil)), byKey, UnknownKey, "no valid self-signature"},
		{"SHA-1 self-signature", join(t, pub, uid, selfSig(t, key, sha1)), byKey, Valid, ""},
		{"direct-key signature only", join(t, pub, direct(func(*packet.Signature) {})), byKey, Valid, ""},
		{"for certifying only", join(t, pub, uid, selfSig(t, key, func(s *packet.Signature) { s.FlagsValid, s.FlagCertify = true, true })), byKey, NotForSigning, ""},
		{"expired by its newest self-signature", join(t, pub, uid, selfSig(t, key, func(s *packet.Signature) { s.KeyLifetimeSecs = &month }), selfSig(t, key, older)), byKey, ExpiredKey, ""},
		{"prolonged by its newest self-signature", join(t, pub, uid, selfSig(t, key, func(s *packet.Signature) { older(s); s.KeyLifetimeSecs = &month }), selfSig(t, key, nil)), byKey, Valid, ""},
		{"expired by a direct-key signature", join(t, pub, direct(func(s *packet.Signature) { older(s); s.KeyLifetimeSecs = &month }), uid, selfSig(t, key, nil)), byKey, ExpiredKey, ""},
		{"of two in one second the later counts", join(t, pub, uid, selfSig(t, key, func(s *packet.Signature) { s.KeyLifetimeSecs = &month }), selfSig(t, key, nil)), byKey, Valid, ""},
		{"and so it expires", join(t, pub, uid, selfSig(t, key, nil), selfSig(t, key, func(s *packet.Signature) { s.KeyLifetimeSecs = &month })), byKey, ExpiredKey, ""},
		{"flags in a direct-key signature", join(t, pub, direct(func(s *packet.Signature) { s.FlagsValid, s.FlagCertify = true, true }), uid, selfSig(t, key, nil)), byKey, NotForSigning, ""},
		{"self-signature expired", join(t, pub, uid, selfSig(t, key, func(s *packet.Signature) { s.SigLifetimeSecs = &month })), byKey, UnknownKey, "no valid self-signature"},

		{"subkey", join(t, pub, uid, selfSig(t, key, nil), &subPub, bind(nil, sub)), bySub, Valid, ""},
		{"subkey not bound", join(t, pub, uid, selfSig(t, key, nil), &subPub), bySub, UnknownKey, "not bound to its primary key"},
		{"subkey adopted", join(t, pub, uid, selfSig(t, key, nil), &subPub, bind(nil, nil)), bySub, UnknownKey, "binding is not signed back"},
		{"subkey signed back by another", join(t, pub, uid, selfSig(t, key, nil), &subPub, bind(nil, key)), bySub, UnknownKey, "binding is not signed back"},
		{"subkey for encrypting", join(t, pub, uid, selfSig(t, key, nil), &subPub, bind(func(s *packet.Signature) { s.FlagSign, s.FlagEncryptStorage = false, true }, sub)), bySub, NotForSigning, ""},

		{"revoked", join(t, pub, revocation(key), uid, selfSig(t, key, nil)), byKey, RevokedKey, "no reason given"},
		{"revoked, subkey", join(t, pub, revocation(key), uid, selfSig(t, key, nil), &subPub, bind(nil, sub)), bySub, RevokedKey, "no reason given"},
		{"revoked by a stranger", join(t, pub, revocation(other), uid, selfSig(t, key, nil)), byKey, Valid, ""},
		{"revoked by a designated revoker", join(t, pub, revocation(other), entitle(), uid, selfSig(t, key, nil),
			&other.PublicKey, uid, selfSig(t, other, nil)), byKey, RevokedKey, "by its designated revoker " + upperHex(other.Fingerprint)},
		{"revoked by a designated revoker we do not have", join(t, pub, revocation(other), entitle(), uid, selfSig(t, key, nil)), byKey, Valid, ""},
		{"revoked in RIPEMD160", join(t, pub, raw(patch(join(t, revocation(key)), 5, hashRIPEMD160)), uid, selfSig(t, key, nil)), byKey, RevokedKey, "by a signature that can not be checked"},
		{"user attribute and unknown packets", join(t, pub, raw(frame(tagUserAttribute, []byte{1})), raw(frame(tagSignature, []byte{9})), raw(frame(60, []byte("x"))),
			raw(frame(tagTrust, []byte{0})), uid, selfSig(t, key, nil)), byKey, Valid, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ring := mustRing(t, c.keys)
			res := mustVerify(t, ring, c.sig, []byte("m"), later)
			wantStatus(t, res, c.want)
			if r := res.Signatures[0].Reason; r != c.why {
				t.Errorf("reason %q, want %q", r, c.why)
			}
			ring.Keys()
		})
	}
}

// patch changes one byte of a packet of less than 192 bytes.
func patch(b []byte, at int, v byte) []byte {
	b = bytes.Clone(b)
	b[at] = v
	return b
}

// signHashed makes a signature whose hashed area has, besides a time and the
// issuer's fingerprint, one subpacket of any type, and an unhashed area of any
// content.
func signHashed(t testing.TB, key *packet.PrivateKey, s *packet.Signature, sub byte, content, unhashed []byte) raw {
	t.Helper()
	area := binary.BigEndian.AppendUint32([]byte{5, subCreated}, uint32(s.CreationTime.Unix()))
	area = append(append(area, byte(2+len(key.Fingerprint)), subFingerprint, 4), key.Fingerprint...)
	if sub != 0 {
		area = append(append(area, byte(1+len(content)), sub), content...)
	}
	p := &sigPacket{version: 4, typ: byte(s.SigType), alg: byte(key.PubKeyAlgo), hash: hashSHA512}
	suffix := p.hashSuffix(area)
	h := crypto.SHA512.New()
	switch s.SigType {
	case packet.SigTypeBinary:
		h.Write([]byte("m"))
	case packet.SigTypeDirectSignature:
		if err := key.PublicKey.SerializeForHash(h); err != nil {
			t.Fatal(err)
		}
	}
	h.Write(suffix)
	sum := h.Sum(nil)
	// The library signs a digest that is complete if it has no suffix to add.
	out := *s
	if err := out.Sign(digest{sum}, key, craftConfig()); err != nil {
		t.Fatal(err)
	}
	made := join(t, &out)
	pkt, _, err := nextPacket(made, 0)
	if err != nil {
		t.Fatal(err)
	}
	mpis := parseSignature(pkt.body).mpis
	body := append([]byte{}, suffix[:len(suffix)-6]...)
	body = binary.BigEndian.AppendUint16(body, uint16(len(unhashed)))
	body = append(append(append(body, unhashed...), sum[:2]...), mpis...)
	return frame(tagSignature, body)
}

// TestSubpackets: what a signature may carry, and where.
func TestSubpackets(t *testing.T) {
	key := craftKey(t)
	ring := mustRing(t, join(t, &key.PublicKey, packet.NewUserId("Crafted", "", "crafted@example.org"), selfSig(t, key, nil)))
	id := binary.BigEndian.AppendUint64([]byte{9, subIssuer}, key.KeyId)
	wrong := binary.BigEndian.AppendUint64([]byte{9, subIssuer}, key.KeyId+1)
	critical := binary.BigEndian.AppendUint64([]byte{9, subIssuer | 0x80}, key.KeyId)
	notation := []byte{0, 0, 0, 0, 0, 1, 0, 1, 'n', 'v'}
	for _, c := range []struct {
		name     string
		sub      byte
		content  []byte
		unhashed []byte
		want     Status
	}{
		{"nothing more", 0, nil, nil, Valid},
		{"issuer", 0, nil, id, Valid},
		{"another issuer", 0, nil, wrong, BadSignature},
		{"issuer twice", 0, nil, append(id[:10:10], id...), Valid},
		{"critical in the unhashed area", 0, nil, critical, BadSignature},
		{"time in the unhashed area", 0, nil, []byte{5, subCreated, 0, 0, 0, 1}, BadSignature},
		{"notation in the unhashed area", 0, nil, append([]byte{byte(len(notation) + 1), subNotation}, notation...), Valid},
		{"embedded signature", 0, nil, []byte{2, subEmbedded, 4}, BadSignature},
		{"length of nothing", 0, nil, []byte{0}, BadSignature},
		{"length past the end", 0, nil, []byte{200}, BadSignature},
		{"notation", subNotation, notation, nil, Valid},
		{"critical notation", subNotation | 0x80, notation, nil, Unsupported},
		{"policy", 26 | 0x80, []byte("https://example.org"), nil, Valid},
		{"unknown", 77, nil, nil, Valid},
		{"unknown and critical", 77 | 0x80, nil, nil, Unsupported},
		{"time twice", subCreated, []byte{0, 0, 0, 1}, nil, BadSignature},
		{"malformed expiry", subExpires, []byte{1}, nil, BadSignature},
		{"expired", subExpires, []byte{0, 0, 0, 1}, nil, ExpiredSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			sig := signHashed(t, key, newSig(packet.SigTypeBinary, key), c.sub, c.content, c.unhashed)
			wantStatus(t, mustVerify(t, ring, sig, []byte("m"), nil), c.want)
		})
	}
	for _, c := range []struct {
		name string
		edit func(s *packet.Signature)
		want Status
	}{
		{"over a key", func(s *packet.Signature) { s.SigType = packet.SigTypeDirectSignature }, Unsupported},
		{"over a user id", func(s *packet.Signature) { s.SigType = packet.SigTypePositiveCert }, Unsupported},
		{"standalone", func(s *packet.Signature) { s.SigType = 2 }, Unsupported},
		{"signer's user id", func(s *packet.Signature) { u := craftUID; s.SignerUserId = &u }, Valid},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantStatus(t, mustVerify(t, ring, dataSig(t, key, "m", c.edit), []byte("m"), nil), c.want)
		})
	}
	// A signature over bytes is none over clear text.
	clear := writeCleartext(hashSHA512, []byte("m"), dataSig(t, key, "m", nil))
	res, err := ring.VerifyClearsigned(clear, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, res, Unsupported)

	pkt, _, err := nextPacket(dataSig(t, key, "m", nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, mustVerify(t, ring, frame(tagSignature, append(bytes.Clone(pkt.body), 0)), []byte("m"), nil), BadSignature)

	// Old and strange versions.
	for version, want := range map[byte]Status{2: Unsupported, 3: Unsupported, 5: Unsupported, 6: BadSignature, 9: Unsupported} {
		sig := dataSig(t, key, "m", nil)
		res := mustVerify(t, ring, patch(sig, 2, version), []byte("m"), nil)
		wantStatus(t, res, want)
	}
}

// TestVersion6 verifies what go-crypto signs by RFC 9580 alone.
func TestVersion6(t *testing.T) {
	for _, alg := range []packet.PublicKeyAlgorithm{packet.PubKeyAlgoEd25519, packet.PubKeyAlgoEd448} {
		cfg := craftConfig()
		cfg.V6Keys, cfg.Algorithm = true, alg
		e, err := openpgp.NewEntity("Six", "", "six@example.org", cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.AddSigningSubkey(cfg); err != nil {
			t.Fatal(err)
		}
		var pub, sig bytes.Buffer
		if err := e.Serialize(&pub); err != nil {
			t.Fatal(err)
		}
		if err := openpgp.DetachSign(&sig, []*openpgp.Entity{e}, bytes.NewReader([]byte("m")), cfg); err != nil {
			t.Fatal(err)
		}
		ring := mustRing(t, pub.Bytes())
		res := mustVerify(t, ring, sig.Bytes(), []byte("m"), nil)
		wantStatus(t, res, Valid)
		if s := res.Signatures[0]; len(s.Fingerprint) != 64 || s.Primary != upperHex(e.PrimaryKey.Fingerprint) {
			t.Errorf("report %+v", s)
		}
		wantStatus(t, mustVerify(t, ring, sig.Bytes(), []byte("n"), nil), BadSignature)
		var sec bytes.Buffer
		if err := e.SerializePrivateWithoutSigning(&sec, cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSigner(bytes.NewReader(sec.Bytes()), nil); err == nil {
			t.Error("signs with a version 6 key")
		}
	}
}

// generated makes a key pair for tests that need no particular one.
func generated(t testing.TB) (*KeySigner, []byte) {
	t.Helper()
	secret, public, err := Generate("Test", "test@example.org", craftTime)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ReadSigner(bytes.NewReader(secret), &SignerOptions{Time: craftTime.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return s, public
}

func detach(t testing.TB, s Signer, msg []byte) []byte {
	t.Helper()
	sig, err := s.DetachSign(context.Background(), bytes.NewReader(msg))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}
