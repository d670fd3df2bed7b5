package pgp

import (
	"bytes"
	"crypto"
	_ "crypto/md5"
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"imgmaint/formats"
)

// This file is the bridge to go-crypto: one public key, or the integers of one
// signature, at a time, in packets written here.

// errPanic is what a panic of the library becomes.
var errPanic = errors.New("the library gave up")

// guard runs f and turns a panic into an error of class formats.ErrCorrupt.
func guard(field string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = formats.Corrupt(format, -1, field, "%v: %v", errPanic, v)
		}
	}()
	return f()
}

// newHash returns the hash of an OpenPGP number; nil when there is none.
func newHash(id byte) (crypto.Hash, hash.Hash) {
	h := cryptoHash(id)
	if h == 0 || !h.Available() {
		return 0, nil
	}
	return h, h.New()
}

func cryptoHash(id byte) crypto.Hash {
	switch id {
	case hashMD5:
		return crypto.MD5
	case hashSHA1:
		return crypto.SHA1
	case hashSHA224:
		return crypto.SHA224
	case hashSHA256:
		return crypto.SHA256
	case hashSHA384:
		return crypto.SHA384
	case hashSHA512:
		return crypto.SHA512
	case hashSHA3_256:
		return crypto.SHA3_256
	case hashSHA3_512:
		return crypto.SHA3_512
	}
	return 0
}

// weakHash tells the hashes that no longer bind a signature to one message.
func weakHash(id byte) bool {
	return id == hashMD5 || id == hashSHA1 || id == hashRIPEMD160
}

// A pubKey is the public part of a key packet.
type pubKey struct {
	version byte
	alg     byte
	created time.Time
	body    []byte // version 4: time, algorithm, material; what is hashed
	fp      []byte
	id      uint64
	bits    int    // of the modulus or the curve
	curve   string // for elliptic curves
	bad     string // why it can not verify anything
}

// curves has the object identifiers of RFC 9580 section 9.2, and secp256k1.
var curves = map[string]struct {
	name string
	bits int
}{
	"\x2a\x86\x48\xce\x3d\x03\x01\x07":         {"NIST P-256", 256},
	"\x2b\x81\x04\x00\x22":                     {"NIST P-384", 384},
	"\x2b\x81\x04\x00\x23":                     {"NIST P-521", 521},
	"\x2b\x24\x03\x03\x02\x08\x01\x01\x07":     {"brainpoolP256r1", 256},
	"\x2b\x24\x03\x03\x02\x08\x01\x01\x0b":     {"brainpoolP384r1", 384},
	"\x2b\x24\x03\x03\x02\x08\x01\x01\x0d":     {"brainpoolP512r1", 512},
	"\x2b\x81\x04\x00\x0a":                     {"secp256k1", 256},
	"\x2b\x06\x01\x04\x01\xda\x47\x0f\x01":     {"Ed25519", 256},
	"\x2b\x06\x01\x04\x01\x97\x55\x01\x05\x01": {"Curve25519", 256},
	"\x2b\x65\x71":                             {"Ed448", 456},
	"\x2b\x65\x6f":                             {"X448", 448},
}

// parsePubKey reads the body of a public key packet, or the public part at the
// front of a secret one (RFC 9580 section 5.5.2); secret is what follows it.
func parsePubKey(body []byte, isSecret bool) (k *pubKey, secret []byte, err error) {
	if len(body) > maxKeyBody {
		return nil, nil, formats.Limit(format, -1, "key", "%d bytes, at most %d", len(body), maxKeyBody)
	}
	f := &fields{b: body}
	k = &pubKey{version: f.u8()}
	if f.bad {
		return nil, nil, formats.Corrupt(format, -1, "key", "empty packet")
	}
	if k.version != 4 && k.version != 6 {
		return nil, nil, formats.Unsupported(format, -1, "key", "version %d", k.version)
	}
	k.created = unix(f.u32())
	k.alg = f.u8()
	if k.version == 6 {
		n := f.u32()
		if uint64(n) > uint64(len(f.b)) || !isSecret && int(n) != len(f.b) {
			return nil, nil, formats.Corrupt(format, -1, "key", "material of %d bytes", n)
		}
		whole := f.b
		f.b = f.b[:n]
		k.material(f)
		secret = whole[n:]
		k.body = body[:len(body)-len(secret)]
	} else {
		k.material(f)
		if isSecret && k.curve == "" && k.bits == 0 {
			return nil, nil, formats.Unsupported(format, -1, "key", "secret key of %s", algorithmName(k.alg))
		}
		secret = f.b
		if !isSecret {
			secret = nil // bytes after the integers belong to what is hashed
		}
		k.body = body[:len(body)-len(secret)]
		if !isSecret && len(f.b) != 0 && k.bits != 0 {
			return nil, nil, formats.Corrupt(format, -1, "key", "bytes after the integers")
		}
	}
	if f.bad {
		return nil, nil, formats.Corrupt(format, -1, "key", "malformed integers")
	}
	if k.bits > maxKeyBits {
		k.bad = "key of " + strconv.Itoa(k.bits) + " bits"
	}
	k.fingerprint()
	return k, secret, nil
}

// material walks over the algorithm's public fields.
func (k *pubKey) material(f *fields) {
	oid := func() {
		c, ok := curves[string(f.take(int(f.u8())))]
		if !ok {
			k.curve, k.bad = "unknown curve", "unknown curve"
		} else {
			k.curve, k.bits = c.name, c.bits
		}
		f.mpi()
	}
	point := func(name string, n, bits int) {
		f.take(n)
		k.curve, k.bits = name, bits
	}
	switch k.alg {
	case algRSA, 2, algRSASign:
		k.bits, _ = f.mpi()
		f.mpi()
	case 16: // p, g, y
		k.bits, _ = f.mpi()
		f.mpi()
		f.mpi()
	case algDSA: // p, q, g, y
		k.bits, _ = f.mpi()
		f.mpi()
		f.mpi()
		f.mpi()
	case algECDSA, algEdDSA:
		oid()
	case 18:
		oid()
		f.take(int(f.u8())) // key derivation parameters
	case 25:
		point("X25519", 32, 256)
	case 26:
		point("X448", 56, 448)
	case algEd25519:
		point("Ed25519", 32, 256)
	case algEd448:
		point("Ed448", 57, 456)
	default:
		k.bad = algorithmName(k.alg)
	}
}

// hashInto writes the key as signatures and fingerprints hash it (RFC 9580
// section 5.2.4).
func (k *pubKey) hashInto(h hash.Hash) {
	if k.version == 6 {
		h.Write(binary.BigEndian.AppendUint32([]byte{0x9b}, uint32(len(k.body))))
	} else {
		h.Write(binary.BigEndian.AppendUint16([]byte{0x99}, uint16(len(k.body))))
	}
	h.Write(k.body)
}

func (k *pubKey) fingerprint() {
	id := byte(hashSHA1)
	if k.version == 6 {
		id = hashSHA256
	}
	_, h := newHash(id)
	k.hashInto(h)
	k.fp = h.Sum(nil)
	k.id = fingerprintID(k.fp)
}

// weak says why a key is too weak to be believed, or "".
func (k *pubKey) weak() string {
	switch k.alg {
	case algRSA, algRSASign:
		if k.bits < minRSABits {
			return "RSA of " + strconv.Itoa(k.bits) + " bits"
		}
	case algDSA:
		return "DSA"
	}
	return ""
}

// A digest is a finished hash in the clothes of a running one.
type digest struct{ sum []byte }

func (d digest) Write(p []byte) (int, error) { return len(p), nil }
func (d digest) Sum(b []byte) []byte         { return append(b, d.sum...) }
func (d digest) Reset()                      {}
func (d digest) Size() int                   { return len(d.sum) }
func (d digest) BlockSize() int              { return 1 }

// errMismatch: the mathematics say no.
var errMismatch = errors.New("signature does not match")

// verify checks s, made by k, over what h has been given. h is used up. It
// returns errMismatch, or an error of class errors.ErrUnsupported when the
// library has no way to tell.
func (k *pubKey) verify(s *sigPacket, h hash.Hash) error {
	if k.bad != "" {
		return formats.Unsupported(format, -1, "key", "%s", k.bad)
	}
	if s.unsupported != "" {
		return formats.Unsupported(format, -1, "signature", "%s", s.unsupported)
	}
	if s.bad != "" {
		return fmt.Errorf("%w: %s", errMismatch, s.bad)
	}
	if s.alg != k.alg || s.version != k.version {
		return fmt.Errorf("%w: %s version %d by a key of %s version %d", errMismatch,
			algorithmName(s.alg), s.version, algorithmName(k.alg), k.version)
	}
	h.Write(s.suffix)
	sum := h.Sum(nil)
	if !bytes.Equal(sum[:2], s.tag[:]) {
		return errMismatch
	}
	return guard("signature", func() error {
		pub, err := k.library()
		if err != nil {
			return err
		}
		sig, err := s.library()
		if err != nil {
			return err
		}
		if pub.VerifySignature(digest{sum}, sig) != nil {
			return errMismatch
		}
		return nil
	})
}

// library gives the key to go-crypto.
func (k *pubKey) library() (*packet.PublicKey, error) {
	p, err := packet.Read(bytes.NewReader(frame(tagPublicKey, k.body)))
	if err != nil {
		return nil, formats.Unsupported(format, -1, "key", "%v", err)
	}
	pub, ok := p.(*packet.PublicKey)
	if !ok || !bytes.Equal(pub.Fingerprint, k.fp) {
		return nil, formats.Unsupported(format, -1, "key", "not in its only form")
	}
	return pub, nil
}

// library gives the signature's integers to go-crypto, in a signature packet of
// version 4 without other subpackets than a time. The packet's version plays no
// part in the mathematics.
func (s *sigPacket) library() (*packet.Signature, error) {
	body := []byte{4, sigBinary, s.alg, hashSHA256, 0, 6, 5, subCreated, 0, 0, 0, 1, 0, 0, s.tag[0], s.tag[1]}
	p, err := packet.Read(bytes.NewReader(frame(tagSignature, append(body, s.mpis...))))
	if err != nil {
		return nil, formats.Unsupported(format, -1, "signature", "%v", err)
	}
	sig, ok := p.(*packet.Signature)
	if !ok {
		return nil, formats.Unsupported(format, -1, "signature", "%T", p)
	}
	sig.Hash = cryptoHash(s.hash)
	return sig, nil
}

// frame writes a packet with a new header of five octets of length.
func frame(tag byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0xc0 | tag, 255}, uint32(len(body)))
	return append(b, body...)
}
