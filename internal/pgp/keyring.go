package pgp

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"time"

	"imgmaint/formats"
)

// A Keyring holds public keys. The zero value is empty; every key in it is
// trusted to sign unless a Policy names some. Reading into a Keyring is not safe
// for concurrent use, everything else is.
type Keyring struct {
	certs    []*cert
	byFP     map[string]*cert
	keys     map[uint64][]member // by key id
	problems []string
}

// A member is a primary key or a subkey of a certificate.
type member struct {
	c   *cert
	sub *subkey // nil for the primary key
}

func (m member) key() *pubKey {
	if m.sub != nil {
		return m.sub.key
	}
	return m.c.key
}

// A cert is a primary key with what was signed about it. Signatures of other
// keys are dropped, except revocations.
type cert struct {
	key    *pubKey
	direct []*sigPacket
	revs   []*sigPacket // by whomever
	uids   []*userID
	subs   []*subkey
}

type userID struct {
	id   []byte
	sigs []*sigPacket
	revs []*sigPacket
}

type subkey struct {
	key   *pubKey
	binds []*sigPacket
	revs  []*sigPacket
}

// ReadKeyring returns the keys of one key file. See Keyring.Read.
func ReadKeyring(r io.Reader) (*Keyring, error) {
	k := new(Keyring)
	if err := k.Read(r); err != nil {
		return nil, err
	}
	return k, nil
}

// Read adds the public keys of a file: armored blocks with any text around them,
// packets as gpg --export writes them, or a GnuPG keybox (pubring.kbx). A key
// that is there already is merged with what is new, so that a revocation in any
// of the files counts. On an error nothing is added.
//
// Keys of kinds we can not use are left out and named by Problems. A file of
// secret keys is errors.ErrUnsupported, one that holds no OpenPGP data
// formats.ErrUnknown.
func (k *Keyring) Read(r io.Reader) error {
	b, err := readAll(r, maxKeyFile, "keyring")
	if err != nil {
		return err
	}
	p := parser{what: "keyring"}
	if err := p.file(b); err != nil {
		return err
	}
	if len(k.certs)+len(p.certs) > maxKeys {
		return formats.Limit(format, -1, "keyring", "more than %d keys", maxKeys)
	}
	if k.byFP == nil {
		k.byFP, k.keys = map[string]*cert{}, map[uint64][]member{}
	}
	for _, c := range p.certs {
		k.add(c)
	}
	k.problems = append(k.problems, p.problems...)
	return nil
}

// readAll reads at most limit bytes.
func readAll(r io.Reader, limit int64, field string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, formats.At(format, int64(len(b)), field, err)
	}
	if int64(len(b)) > limit {
		return nil, formats.Limit(format, -1, field, "over %d bytes", limit)
	}
	return b, nil
}

// Len is the number of primary keys.
func (k *Keyring) Len() int { return len(k.certs) }

// Problems lists what was left out when reading.
func (k *Keyring) Problems() []string { return slices.Clone(k.problems) }

func (k *Keyring) add(c *cert) {
	fp := string(c.key.fp)
	old := k.byFP[fp]
	if old == nil {
		old = &cert{key: c.key}
		k.byFP[fp] = old
		k.certs = append(k.certs, old)
		k.keys[c.key.id] = append(k.keys[c.key.id], member{c: old})
	}
	old.direct = mergeSigs(old.direct, c.direct)
	old.revs = mergeSigs(old.revs, c.revs)
	for _, u := range c.uids {
		i := slices.IndexFunc(old.uids, func(o *userID) bool { return bytes.Equal(o.id, u.id) })
		if i < 0 {
			old.uids = append(old.uids, &userID{id: u.id})
			i = len(old.uids) - 1
		}
		o := old.uids[i]
		o.sigs, o.revs = mergeSigs(o.sigs, u.sigs), mergeSigs(o.revs, u.revs)
	}
	for _, s := range c.subs {
		i := slices.IndexFunc(old.subs, func(o *subkey) bool { return bytes.Equal(o.key.fp, s.key.fp) })
		if i < 0 {
			old.subs = append(old.subs, &subkey{key: s.key})
			i = len(old.subs) - 1
			k.keys[s.key.id] = append(k.keys[s.key.id], member{old, old.subs[i]})
		}
		o := old.subs[i]
		o.binds, o.revs = mergeSigs(o.binds, s.binds), mergeSigs(o.revs, s.revs)
	}
}

func mergeSigs(old, more []*sigPacket) []*sigPacket {
	for _, s := range more {
		if !slices.ContainsFunc(old, func(o *sigPacket) bool {
			return bytes.Equal(o.suffix, s.suffix) && bytes.Equal(o.mpis, s.mpis) && bytes.Equal(o.embedded, s.embedded)
		}) {
			old = append(old, s)
		}
	}
	return old
}

// A parser reads key files.
type parser struct {
	what     string // names the file in errors
	secret   bool   // secret keys are wanted
	packets  int
	certs    []*cert
	secrets  []secretPacket // when secret, in order
	problems []string

	cur  *cert
	uid  *userID
	sub  *subkey
	skip bool // until the next primary key
	mute bool // until the next key or user id
}

// A secretPacket is a secret key as it stands in its file.
type secretPacket struct {
	fp     []byte
	pub    *pubKey
	tag    byte
	body   []byte
	secret []byte // the part after the public one
}

// keyboxMagic is at 8 in the first blob of a keybox.
const keyboxMagic = "KBXf"

func (p *parser) file(b []byte) error {
	switch {
	case len(b) >= 12 && string(b[8:12]) == keyboxMagic:
		if p.secret {
			return formats.Unsupported(format, 0, p.what, "keybox: it holds no secret keys")
		}
		return p.keybox(b)
	case isBinary(b):
		return p.read(b)
	}
	l := &lines{b: b}
	found := false
	for {
		line, off, ok := l.next()
		if !ok {
			break
		}
		typ, begin := armorLine(line)
		if !begin {
			continue
		}
		if typ != armorPublic && typ != armorSecret {
			return formats.Corrupt(format, int64(off), p.what, "%.40q in place of keys", typ)
		}
		body, err := dearmor(l, typ)
		if err != nil {
			return err
		}
		if err := p.read(body); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return formats.Unknown(format, -1, p.what, "no key in it")
	}
	return nil
}

// keybox reads GnuPG's pubring.kbx: blobs of u32 length, u8 type, u8 version,
// u16 flags; for OpenPGP (type 2) u32 offset and u32 length of the packets, from
// the start of the blob (GnuPG, kbx/keybox-blob.c). Ephemeral blobs (flag 2) are
// skipped, as GnuPG does. The blob's own checksum is not looked at: the keys
// carry signatures.
func (p *parser) keybox(b []byte) error {
	for off := 0; off < len(b); {
		rest := b[off:]
		if len(rest) < 5 {
			return formats.Corrupt(format, int64(off), "blob_length", "cut")
		}
		n := binary.BigEndian.Uint32(rest)
		if n < 5 || uint64(n) > uint64(len(rest)) {
			return formats.Corrupt(format, int64(off), "blob_length", "%d", n)
		}
		blob := rest[:n]
		if blob[4] == 2 {
			if n < 16 {
				return formats.Corrupt(format, int64(off), "blob_length", "%d", n)
			}
			start, size := binary.BigEndian.Uint32(blob[8:]), binary.BigEndian.Uint32(blob[12:])
			if uint64(start)+uint64(size) > uint64(n) {
				return formats.Corrupt(format, int64(off), "keyblock_offset", "%d and %d bytes, in a blob of %d", start, size, n)
			}
			if binary.BigEndian.Uint16(blob[6:])&2 == 0 {
				if err := p.read(blob[start : start+size]); err != nil {
					return err
				}
			}
		}
		off += int(n)
	}
	return nil
}

// read reads packets of transferable keys (RFC 9580 section 10.1).
func (p *parser) read(b []byte) error {
	p.cur, p.uid, p.sub, p.skip, p.mute = nil, nil, nil, true, true
	first := true
	for off := 0; off < len(b); {
		pkt, next, err := nextPacket(b, off)
		if err != nil {
			return err
		}
		off = next
		if p.packets++; p.packets > maxPackets {
			return formats.Limit(format, pkt.off, p.what, "more than %d packets", maxPackets)
		}
		if skip, err := checkTag(pkt); err != nil {
			return err
		} else if skip {
			continue
		}
		primary := pkt.tag == tagPublicKey || pkt.tag == tagSecretKey
		if first && !primary {
			return formats.Corrupt(format, pkt.off, p.what, "begins with a packet of type %d", pkt.tag)
		}
		first = false
		switch pkt.tag {
		case tagPublicKey, tagPublicSubkey, tagSecretKey, tagSecretSubkey:
			err = p.key(pkt, primary)
		case tagUserID:
			err = p.user(pkt)
		case tagSignature:
			err = p.signature(pkt)
		case tagUserAttribute:
			p.uid, p.sub, p.mute = nil, nil, true
		case tagTrust:
		default:
			err = formats.Corrupt(format, pkt.off, p.what, "packet of type %d", pkt.tag)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) key(pkt rawPacket, primary bool) error {
	isSecret := pkt.tag == tagSecretKey || pkt.tag == tagSecretSubkey
	if isSecret != p.secret {
		if isSecret {
			return formats.Unsupported(format, pkt.off, p.what, "secret keys")
		}
		return formats.Unsupported(format, pkt.off, p.what, "no secret keys, public ones")
	}
	p.uid, p.sub, p.mute = nil, nil, false
	if primary {
		p.cur, p.skip = nil, false
	} else if p.skip {
		return nil
	}
	k, secret, err := parsePubKey(pkt.body, isSecret)
	if err != nil {
		if !isUnsupported(err) {
			return err
		}
		p.problems = append(p.problems, err.Error())
		p.mute = true
		p.skip = p.skip || primary
		return nil
	}
	if isSecret {
		p.secrets = append(p.secrets, secretPacket{k.fp, k, pkt.tag, pkt.body, secret})
	}
	if primary {
		if len(p.certs) == maxKeys {
			return formats.Limit(format, pkt.off, p.what, "more than %d keys", maxKeys)
		}
		p.cur = &cert{key: k}
		p.certs = append(p.certs, p.cur)
		return nil
	}
	if len(p.cur.subs) == maxPerKey {
		return formats.Limit(format, pkt.off, p.what, "more than %d subkeys", maxPerKey)
	}
	p.sub = &subkey{key: k}
	p.cur.subs = append(p.cur.subs, p.sub)
	return nil
}

func (p *parser) user(pkt rawPacket) error {
	if p.skip {
		return nil
	}
	if len(pkt.body) > maxUserID {
		return formats.Limit(format, pkt.off, "user id", "%d bytes, at most %d", len(pkt.body), maxUserID)
	}
	if len(p.cur.uids) == maxPerKey {
		return formats.Limit(format, pkt.off, p.what, "more than %d user ids", maxPerKey)
	}
	p.uid, p.sub, p.mute = &userID{id: pkt.body}, nil, false
	p.cur.uids = append(p.cur.uids, p.uid)
	return nil
}

func (p *parser) signature(pkt rawPacket) error {
	if p.skip || p.mute {
		return nil
	}
	s := parseSignature(pkt.body)
	own := s.by(p.cur.key)
	var list *[]*sigPacket
	switch {
	case s.typ == sigKeyRevoke:
		list = &p.cur.revs
	case !own:
	case p.sub != nil && s.typ == sigSubkeyBinding:
		list = &p.sub.binds
	case p.sub != nil && s.typ == sigSubkeyRevoke:
		list = &p.sub.revs
	case p.uid != nil && sigGenericCert <= s.typ && s.typ <= sigPositiveCert:
		list = &p.uid.sigs
	case p.uid != nil && s.typ == sigCertRevoke:
		list = &p.uid.revs
	case s.typ == sigDirectKey:
		list = &p.cur.direct
	}
	if list == nil {
		return nil
	}
	if len(*list) == maxSelfSignatures {
		return formats.Limit(format, pkt.off, p.what, "more than %d self-signatures", maxSelfSignatures)
	}
	*list = append(*list, s)
	return nil
}

// A Key describes a primary key, or a subkey of one.
type Key struct {
	Fingerprint string    `json:"fingerprint"` // upper case hexadecimal
	KeyID       string    `json:"key-id"`      // 16 digits
	Version     int       `json:"version"`
	Algorithm   string    `json:"algorithm"`       // RSA, DSA, ECDSA, EdDSA, Ed25519, ...
	Curve       string    `json:"curve,omitempty"` // of elliptic curves
	Bits        int       `json:"bits,omitempty"`
	Created     time.Time `json:"created"`
	Expires     time.Time `json:"expires,omitzero"` // zero for never
	CanSign     bool      `json:"can-sign"`
	Weak        string    `json:"weak,omitempty"`    // why
	Revoked     string    `json:"revoked,omitempty"` // why; never empty when revoked
	Invalid     string    `json:"invalid,omitempty"` // why it is no use at all
	UserIDs     []UserID  `json:"user-ids,omitempty"`
	Subkeys     []Key     `json:"subkeys,omitempty"`
}

// A UserID is a name on a key. The text is the key's; it may hold control
// characters.
type UserID struct {
	ID      string `json:"id"`
	Primary bool   `json:"primary,omitempty"`
	Revoked bool   `json:"revoked,omitempty"`
	Invalid bool   `json:"invalid,omitempty"` // without a valid self-signature
}

// Name is the primary user id of a key, or "".
func (k *Key) Name() string {
	for _, u := range k.UserIDs {
		if u.Primary {
			return u.ID
		}
	}
	return ""
}

// Keys describes the keys, in the order they were read. It verifies all
// self-signatures.
func (k *Keyring) Keys() []Key {
	out := make([]Key, 0, len(k.certs))
	for _, c := range k.certs {
		st := k.evaluate(c, time.Time{})
		key := describe(c.key)
		key.Expires, key.CanSign, key.Revoked, key.Invalid = st.expires, st.sign, st.revoked, st.invalid
		for i, u := range c.uids {
			us := st.uids[i]
			key.UserIDs = append(key.UserIDs, UserID{ID: text(u.id), Primary: i == st.primary,
				Revoked: us.revoked, Invalid: us.self == nil && !us.revoked})
		}
		for _, s := range c.subs {
			ss := c.evaluateSub(s, time.Time{})
			sub := describe(s.key)
			sub.Expires, sub.CanSign, sub.Revoked, sub.Invalid = ss.expires, ss.sign, ss.revoked, ss.invalid
			key.Subkeys = append(key.Subkeys, sub)
		}
		out = append(out, key)
	}
	return out
}

func describe(k *pubKey) Key {
	return Key{
		Fingerprint: upperHex(k.fp),
		KeyID:       keyIDString(k.id),
		Version:     int(k.version),
		Algorithm:   algorithmName(k.alg),
		Curve:       k.curve,
		Bits:        k.bits,
		Created:     k.created,
		Weak:        k.weak(),
	}
}

// cleanFingerprint brings a fingerprint as people write it to upper case digits
// without blanks or 0x. It returns "" for what is neither a version 4 nor a
// version 6 fingerprint nor, when id is allowed, a key id of 16 digits.
func cleanFingerprint(s string, id bool) string {
	s = strings.ToUpper(strings.Join(strings.Fields(s), ""))
	s = strings.TrimPrefix(s, "0X")
	if n := len(s); n != 40 && n != 64 && !(id && n == 16) {
		return ""
	}
	if strings.Trim(s, "0123456789ABCDEF") != "" {
		return ""
	}
	return s
}
