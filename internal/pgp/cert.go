package pgp

import (
	"cmp"
	"encoding/binary"
	"errors"
	"hash"
	"slices"
	"time"
)

func isUnsupported(err error) bool { return errors.Is(err, errors.ErrUnsupported) }

// A certState is what a certificate's own signatures say.
type certState struct {
	invalid string // why the key is no use
	revoked string
	expires time.Time
	sign    bool // the primary key may sign
	uids    []uidState
	primary int // index of the primary user id, -1 for none
}

type uidState struct {
	self    *sigPacket // the newest valid self-signature
	revoked bool
}

type subState struct {
	invalid string
	revoked string
	expires time.Time // its own
	sign    bool
}

// start returns the hash of a signature, salt included; nil when there is none.
func (s *sigPacket) start() hash.Hash {
	_, h := newHash(s.hash)
	if h != nil && s.salt != nil {
		h.Write(s.salt)
	}
	return h
}

// certifies checks a self-signature over the primary key and what write adds.
// SHA-1 is let pass, as GnuPG does: a self-signature is over its maker's own
// data, and keys made before 2014 have no other. MD5 and RIPEMD160 are not.
//
// The answer is remembered: it depends on nothing but the certificate.
func (c *cert) certifies(by *pubKey, s *sigPacket, write func(h hash.Hash)) bool {
	if v := s.checked.Load(); v != nil && v.by == by {
		return v.ok
	}
	ok := c.check(by, s, write)
	s.checked.Store(&checked{by, ok})
	return ok
}

// checked is what became of a signature in a certificate.
type checked struct {
	by *pubKey
	ok bool
}

func (c *cert) check(by *pubKey, s *sigPacket, write func(h hash.Hash)) bool {
	if s.hash == hashMD5 || s.hash == hashRIPEMD160 {
		return false
	}
	h := s.start()
	if h == nil {
		return false
	}
	c.key.hashInto(h)
	if write != nil {
		write(h)
	}
	return by.verify(s, h) == nil
}

// newest returns the newest signature that holds and has not expired at a time,
// if one is given: by the time in it, and of two of one second the one that
// stands later in the file.
func newest(sigs []*sigPacket, at time.Time, holds func(s *sigPacket) bool) *sigPacket {
	order := slices.Clone(sigs)
	slices.Reverse(order)
	slices.SortStableFunc(order, func(a, b *sigPacket) int { return cmp.Compare(b.created.Unix(), a.created.Unix()) })
	for _, s := range order {
		if holds(s) {
			if e := s.expires(); !e.IsZero() && !at.IsZero() && !at.Before(e) {
				continue
			}
			return s
		}
	}
	return nil
}

// revocation returns why a revocation counts, or "". One that we can not check
// for want of its hash or its algorithm counts too: nobody would forge it, and
// to ignore it would be to trust a key its owner may have given up.
func (c *cert) revocation(s *sigPacket, by *pubKey, write func(h hash.Hash)) string {
	why := s.reason
	if why == "" {
		why = revocationReason(0)
	}
	if c.certifies(by, s, write) {
		return why
	}
	if s.bad == "" && (s.unsupported != "" || s.hash == hashMD5 || s.hash == hashRIPEMD160 || cryptoHash(s.hash) == 0) {
		return "by a signature that can not be checked"
	}
	return ""
}

// evaluate works out the state of a primary key, without the self-signatures
// that have expired at a time, if one is given. The keyring is asked for the keys
// of designated revokers.
func (k *Keyring) evaluate(c *cert, at time.Time) certState {
	st := certState{primary: -1, uids: make([]uidState, len(c.uids))}
	self := func(s *sigPacket) bool { return s.by(c.key) }

	direct := newest(c.direct, at, func(s *sigPacket) bool { return c.certifies(c.key, s, nil) })
	var main *sigPacket // the newest self-signature on a user id that stands
	revokedUIDs := false
	for i, u := range c.uids {
		write := func(h hash.Hash) {
			h.Write(binary.BigEndian.AppendUint32([]byte{0xb4}, uint32(len(u.id))))
			h.Write(u.id)
		}
		us := &st.uids[i]
		us.self = newest(u.sigs, at, func(s *sigPacket) bool { return c.certifies(c.key, s, write) })
		for _, r := range u.revs {
			if us.self != nil && r.created.Before(us.self.created) {
				continue // signed again since
			}
			if c.revocation(r, c.key, write) != "" {
				us.revoked = true
			}
		}
		if us.revoked {
			revokedUIDs = true
			continue
		}
		if us.self == nil {
			continue
		}
		if main == nil || us.self.created.After(main.created) {
			main = us.self
		}
		if p := st.primary; p < 0 || us.self.primaryUID && !st.uids[p].self.primaryUID ||
			us.self.primaryUID == st.uids[p].self.primaryUID && us.self.created.After(st.uids[p].self.created) {
			st.primary = i
		}
	}

	for _, r := range c.revs {
		if self(r) {
			if why := c.revocation(r, c.key, nil); why != "" {
				st.revoked = why
			}
		}
	}
	if st.revoked == "" {
		st.revoked = k.designated(c)
	}

	switch {
	case c.key.bad != "":
		st.invalid = c.key.bad
	case main == nil && revokedUIDs && direct == nil:
		st.revoked = cmp.Or(st.revoked, "every user id is revoked")
	case main == nil && direct == nil:
		st.invalid = "no valid self-signature"
	}

	// GnuPG's order: a direct-key signature's expiry, else that of the newest
	// self-signature on a user id.
	switch {
	case direct != nil && direct.hasKeyLife:
		st.expires = c.key.expiry(direct)
	case main != nil:
		st.expires = c.key.expiry(main)
	}
	flags := main
	if direct != nil && direct.hasFlags && (main == nil || !main.hasFlags) {
		flags = direct
	}
	st.sign = canSign(c.key.alg) && (flags == nil || !flags.hasFlags || flags.flags&flagSign != 0)
	return st
}

// designated looks for a revocation by a key that the owner entitled to it (RFC
// 9580 section 5.2.3.23). Who is entitled is read from any valid self-signature.
func (k *Keyring) designated(c *cert) string {
	var entitled [][]byte
	for _, s := range c.direct {
		if len(s.revokers) > 0 && c.certifies(c.key, s, nil) {
			entitled = append(entitled, s.revokers...)
		}
	}
	for _, fp := range entitled {
		by := k.byFP[string(fp)]
		if by == nil {
			continue
		}
		for _, r := range c.revs {
			if !r.by(by.key) {
				continue
			}
			if c.certifies(by.key, r, nil) {
				return "by its designated revoker " + upperHex(fp)
			}
		}
	}
	return ""
}

// expiry is the time at which k expires by self-signature s, zero for never.
func (k *pubKey) expiry(s *sigPacket) time.Time {
	if s == nil || s.keyLifetime == 0 {
		return time.Time{}
	}
	return k.created.Add(time.Duration(s.keyLifetime) * time.Second)
}

func canSign(alg byte) bool {
	switch alg {
	case algRSA, algRSASign, algDSA, algECDSA, algEdDSA, algEd25519, algEd448:
		return true
	}
	return false
}

// evaluateSub works out the state of a subkey. A binding for signing has to
// carry the subkey's own signature over the pair (RFC 9580 section 5.2.1.9), or
// anybody could put a stranger's signing key under his own.
func (c *cert) evaluateSub(s *subkey, at time.Time) subState {
	var st subState
	bind := newest(s.binds, at, func(b *sigPacket) bool { return c.certifies(c.key, b, s.key.hashInto) })
	for _, r := range s.revs {
		if why := c.revocation(r, c.key, s.key.hashInto); why != "" {
			st.revoked = why
		}
	}
	switch {
	case s.key.bad != "":
		st.invalid = s.key.bad
		return st
	case bind == nil:
		st.invalid = "not bound to its primary key"
		return st
	}
	st.expires = s.key.expiry(bind)
	st.sign = canSign(s.key.alg) && (!bind.hasFlags || bind.flags&flagSign != 0)
	if st.sign && !c.crossSigned(s, bind) {
		st.sign = false
		if bind.hasFlags {
			st.invalid = "binding is not signed back"
		}
	}
	return st
}

func (c *cert) crossSigned(s *subkey, bind *sigPacket) bool {
	if bind.embedded == nil {
		return false
	}
	back := bind.back.Load()
	if back == nil {
		back = parseSignature(bind.embedded)
		bind.back.Store(back)
	}
	return back.typ == sigPrimaryBind && back.by(s.key) && c.certifies(s.key, back, s.key.hashInto)
}
