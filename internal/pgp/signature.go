package pgp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"imgmaint/formats"
)

// A sigPacket is a signature packet, read but not verified. When bad or
// unsupported is set the rest is what could be read up to there.
type sigPacket struct {
	version byte
	typ     byte // signature type
	alg     byte // public key algorithm
	hash    byte // hash algorithm
	tag     [2]byte
	salt    []byte // version 6
	suffix  []byte // what is hashed after the signed data
	mpis    []byte // the algorithm's integers, checked for form

	created     time.Time
	lifetime    uint32 // seconds, 0 for ever
	keyLifetime uint32 // seconds after the key's creation, 0 for ever
	hasKeyLife  bool
	issuer      uint64
	hasIssuer   bool
	issuerFP    []byte // in the hashed area
	flags       byte
	hasFlags    bool
	primaryUID  bool
	signerUID   string
	reason      string // for a revocation
	embedded    []byte // body of a signature packet
	revokers    [][]byte

	bad         string // why it can not be right
	unsupported string // why we can not tell

	checked atomic.Pointer[checked]   // in a certificate
	back    atomic.Pointer[sigPacket] // embedded, once it was parsed
}

// expires returns the time at which the signature expires, zero for never.
func (s *sigPacket) expires() time.Time {
	if s.lifetime == 0 {
		return time.Time{}
	}
	return s.created.Add(time.Duration(s.lifetime) * time.Second)
}

// keyID is the id of the signing key as the signature gives it.
func (s *sigPacket) keyID() (uint64, bool) {
	if s.issuerFP != nil {
		return fingerprintID(s.issuerFP), true
	}
	return s.issuer, s.hasIssuer
}

// by tells whether the signature names k as its issuer, or nobody.
func (s *sigPacket) by(k *pubKey) bool {
	if s.issuerFP != nil {
		return bytes.Equal(s.issuerFP, k.fp)
	}
	return !s.hasIssuer || s.issuer == k.id
}

// fingerprintID is the key id that belongs to a fingerprint: the last eight
// octets of a version 4 one, the first eight of a later one.
func fingerprintID(fp []byte) uint64 {
	if len(fp) == 20 {
		return binary.BigEndian.Uint64(fp[12:])
	}
	return binary.BigEndian.Uint64(fp)
}

// parseSignature reads the body of a signature packet (RFC 9580 section 5.2). It
// never fails: what is wrong is in bad or unsupported.
func parseSignature(body []byte) *sigPacket {
	s := new(sigPacket)
	if len(body) > maxSignatureBody {
		s.unsupported = "signature packet of " + strconv.Itoa(len(body)) + " bytes"
		return s
	}
	f := &fields{b: body}
	s.version = f.u8()
	switch {
	case f.bad:
		s.bad = "empty packet"
		return s
	case s.version == 3: // hashed length 5, type, time, key id, algorithms
		f.take(1)
		s.typ, s.created = f.u8(), unix(f.u32())
		s.issuer = binary.BigEndian.Uint64(f.take(8))
		s.alg, s.hash = f.u8(), f.u8()
		s.hasIssuer = !f.bad
		s.unsupported = "signature version 3"
		return s
	case s.version != 4 && s.version != 6:
		s.unsupported = "signature version " + strconv.Itoa(int(s.version))
		return s
	}
	s.typ, s.alg, s.hash = f.u8(), f.u8(), f.u8()
	length := func() int {
		if s.version == 6 {
			return int(min(f.u32(), maxSignatureBody))
		}
		return int(f.u16())
	}
	n := length()
	hashed := f.take(n)
	s.suffix = s.hashSuffix(hashed)
	n = length()
	unhashed := f.take(n)
	copy(s.tag[:], f.take(2))
	if s.version == 6 {
		s.salt = f.take(int(f.u8()))
		if want := saltSize(s.hash); want != 0 && len(s.salt) != want {
			s.bad = "salt of " + strconv.Itoa(len(s.salt)) + " bytes"
		}
	}
	if f.bad {
		s.bad = "packet is cut"
		return s
	}
	s.subpackets(hashed, true)
	s.subpackets(unhashed, false)
	if s.created.IsZero() {
		s.setBad("no creation time")
	}
	if s.issuerFP != nil && s.hasIssuer && s.issuer != fingerprintID(s.issuerFP) {
		s.setBad("issuer key id and issuer fingerprint disagree")
	}
	s.integers(f)
	return s
}

func (s *sigPacket) setBad(why string) {
	if s.bad == "" {
		s.bad = why
	}
}

func unix(t uint32) time.Time { return time.Unix(int64(t), 0).UTC() }

// hashSuffix is the trailer of RFC 9580 section 5.2.4.
func (s *sigPacket) hashSuffix(hashed []byte) []byte {
	b := []byte{s.version, s.typ, s.alg, s.hash}
	if s.version == 6 {
		b = binary.BigEndian.AppendUint32(b, uint32(len(hashed)))
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(len(hashed)))
	}
	b = append(b, hashed...)
	n := uint32(len(b))
	b = append(b, s.version, 0xff)
	return binary.BigEndian.AppendUint32(b, n)
}

// saltSize is the size of a version 6 salt (RFC 9580 table 23), 0 if there can
// be none with the hash.
func saltSize(hash byte) int {
	switch hash {
	case hashSHA224, hashSHA256, hashSHA3_256:
		return 16
	case hashSHA384:
		return 24
	case hashSHA512, hashSHA3_512:
		return 32
	}
	return 0
}

// integers checks the form of the algorithm-specific part, which has to fill
// the rest of the packet.
func (s *sigPacket) integers(f *fields) {
	s.mpis = f.b
	switch s.alg {
	case algRSA, algRSASign:
		f.mpi()
	case algDSA, algECDSA, algEdDSA:
		f.mpi()
		f.mpi()
	case algEd25519:
		f.take(64)
	case algEd448:
		f.take(114)
	default:
		if s.unsupported == "" {
			s.unsupported = "public key algorithm " + strconv.Itoa(int(s.alg))
		}
		return
	}
	if f.bad {
		s.setBad("malformed integers")
	} else if len(f.b) != 0 {
		s.setBad("bytes after the integers")
	}
}

// subpackets reads an area of subpackets (RFC 9580 section 5.2.3.7). Nothing in
// the unhashed area is believed beyond which key to try; and since nobody
// signed it, only what is known to be put there is let pass.
func (s *sigPacket) subpackets(b []byte, hashed bool) {
	seen := map[byte]bool{}
	for len(b) > 0 {
		f := &fields{b: b}
		n := uint32(f.u8())
		switch {
		case n == 255:
			n = f.u32()
		case n >= 192:
			n = (n-192)<<8 + uint32(f.u8()) + 192
		}
		if f.bad || n == 0 || uint64(n) > uint64(len(f.b)) {
			s.setBad("malformed subpacket length")
			return
		}
		typ, v := f.b[0], f.b[1:n:n]
		b = f.b[n:]
		critical := typ&0x80 != 0
		typ &= 0x7f
		if hashed {
			switch typ {
			case subCreated, subExpires, subKeyExpires, subKeyFlags, subFingerprint:
				if seen[typ] {
					s.setBad("subpacket " + strconv.Itoa(int(typ)) + " twice")
				}
			}
			seen[typ] = true
			s.hashedSubpacket(typ, v, critical)
			continue
		}
		switch {
		case critical:
			s.setBad("critical subpacket " + strconv.Itoa(int(typ)) + " in the unhashed area")
		case typ == subIssuer:
			s.setIssuer(v)
		case typ == subFingerprint:
			if fp := s.fingerprint(v); fp != nil && !s.hasIssuer {
				s.issuer, s.hasIssuer = fingerprintID(fp), true
			}
		case typ == subEmbedded && s.typ == sigSubkeyBinding:
			s.embedded = v
		case typ == subNotation && len(v) >= 8 && len(v) == 8+int(v[4])<<8+int(v[5])+int(v[6])<<8+int(v[7]):
		default:
			s.setBad("subpacket " + strconv.Itoa(int(typ)) + " in the unhashed area")
		}
	}
}

func (s *sigPacket) setIssuer(v []byte) {
	if len(v) != 8 {
		s.setBad("malformed issuer")
		return
	}
	id := binary.BigEndian.Uint64(v)
	if s.hasIssuer && id != s.issuer {
		s.setBad("two issuers")
	}
	s.issuer, s.hasIssuer = id, true
}

// fingerprint reads a version octet and a fingerprint.
func (s *sigPacket) fingerprint(v []byte) []byte {
	if len(v) == 21 && v[0] == 4 || len(v) == 33 && v[0] >= 5 {
		return v[1:]
	}
	s.setBad("malformed issuer fingerprint")
	return nil
}

func (s *sigPacket) hashedSubpacket(typ byte, v []byte, critical bool) {
	u32 := func() uint32 {
		if len(v) != 4 {
			s.setBad("malformed subpacket " + strconv.Itoa(int(typ)))
			return 0
		}
		return binary.BigEndian.Uint32(v)
	}
	switch typ {
	case subCreated:
		s.created = unix(u32())
	case subExpires:
		s.lifetime = u32()
	case subKeyExpires:
		s.keyLifetime, s.hasKeyLife = u32(), true
	case subIssuer:
		s.setIssuer(v)
	case subFingerprint:
		s.issuerFP = s.fingerprint(v)
	case subRevoker: // class, algorithm, fingerprint
		if len(v) == 22 && v[0]&0x80 != 0 && len(s.revokers) < maxCandidates {
			s.revokers = append(s.revokers, v[2:])
		}
	case subPrimaryUID:
		s.primaryUID = len(v) == 1 && v[0] != 0
	case subKeyFlags:
		s.hasFlags = true
		if len(v) > 0 {
			s.flags = v[0]
		}
	case subSignerUID:
		s.signerUID = text(v)
	case subReason:
		if len(v) > 0 {
			s.reason = revocationReason(v[0])
			if t := text(v[1:]); t != "" {
				s.reason += ": " + t
			}
		}
	case subEmbedded:
		if s.typ == sigSubkeyBinding {
			s.embedded = v
		}
	case subNotation:
		if critical {
			s.unsupported = "critical notation"
		}
	case 4, 5, 6, 7, 11, 21, 22, 23, 24, 26, 30, 31, 34, 35, 37, 39:
		// Exportable, trust, regular expression, revocable, preferences of several
		// kinds, policy, features, target, recipients, attestations: they change
		// nothing about who signed what.
	default:
		if critical {
			s.unsupported = "critical subpacket " + strconv.Itoa(int(typ))
		}
	}
}

// revocationReason names RFC 9580 section 5.2.3.31's codes.
func revocationReason(code byte) string {
	switch code {
	case 0:
		return "no reason given"
	case 1:
		return "key superseded"
	case 2:
		return "key compromised"
	case 3:
		return "key retired"
	case 32:
		return "user id no longer valid"
	}
	return "reason " + strconv.Itoa(int(code))
}

// text makes a string of a file's bytes: valid UTF-8 of bounded length. It may
// hold control characters; whoever prints it escapes it.
func text(b []byte) string {
	return strings.ToValidUTF8(string(b[:min(len(b), maxUserID)]), "\ufffd")
}

// upperHex prints fingerprints and key ids as GnuPG does.
func upperHex(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }

func keyIDString(id uint64) string {
	return upperHex(binary.BigEndian.AppendUint64(nil, id))
}

// algorithmName names a public key algorithm.
func algorithmName(alg byte) string {
	switch alg {
	case algRSA, 2, algRSASign:
		return "RSA"
	case 16:
		return "Elgamal"
	case algDSA:
		return "DSA"
	case 18:
		return "ECDH"
	case algECDSA:
		return "ECDSA"
	case algEdDSA:
		return "EdDSA"
	case 25:
		return "X25519"
	case 26:
		return "X448"
	case algEd25519:
		return "Ed25519"
	case algEd448:
		return "Ed448"
	}
	return "algorithm " + strconv.Itoa(int(alg))
}

// hashName names a hash algorithm as the Hash header of clear-signed text does.
func hashName(hash byte) string {
	switch hash {
	case hashMD5:
		return "MD5"
	case hashSHA1:
		return "SHA1"
	case hashRIPEMD160:
		return "RIPEMD160"
	case hashSHA256:
		return "SHA256"
	case hashSHA384:
		return "SHA384"
	case hashSHA512:
		return "SHA512"
	case hashSHA224:
		return "SHA224"
	case hashSHA3_256:
		return "SHA3-256"
	case hashSHA3_512:
		return "SHA3-512"
	}
	return "hash " + strconv.Itoa(int(hash))
}

// readSignatures cuts a signature file's packets, which have to be signatures.
func readSignatures(b []byte) ([]*sigPacket, error) {
	var out []*sigPacket
	for off := 0; off < len(b); {
		p, next, err := nextPacket(b, off)
		if err != nil {
			return nil, err
		}
		off = next
		if skip, err := checkTag(p); err != nil {
			return nil, err
		} else if skip {
			continue
		}
		if p.tag != tagSignature {
			return nil, formats.Corrupt(format, p.off, "signature", "packet of type %d", p.tag)
		}
		if len(out) == maxSignatures {
			return nil, formats.Limit(format, p.off, "signature", "more than %d signatures", maxSignatures)
		}
		out = append(out, parseSignature(p.body))
	}
	if len(out) == 0 {
		return nil, formats.Corrupt(format, -1, "signature", "no signature")
	}
	return out, nil
}
