package pgp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"imgmaint/formats"
)

// A Signer makes signatures with one key.
type Signer interface {
	// DetachSign returns an armored signature over the exact bytes of a message,
	// which is read once and in a stream.
	DetachSign(ctx context.Context, message io.Reader) ([]byte, error)
	// ClearSign returns a clear-signed message. Its signature leaves out white
	// space at line ends and does not tell whether the last line had an end. Lines
	// over 19,000 bytes are formats.ErrLimit, because GnuPG would not verify them.
	ClearSign(ctx context.Context, text []byte) ([]byte, error)
}

// SignerOptions say how to sign. nil stands for the defaults.
type SignerOptions struct {
	// Key chooses by fingerprint or key id of 16 digits, of a primary key, which
	// stands for its signing subkey if it has one, or of one subkey. "" chooses
	// the only key of the file.
	Key string
	// Passphrase is called, once, when the key needs one.
	Passphrase func() ([]byte, error)
	// Time is the time of the signatures, and that of the check that the key may
	// be used; zero is the time of signing. With a Time, RSA and EdDSA signatures
	// over the same message are the same bytes.
	Time time.Time
}

// SourceDateEpoch returns the time that SOURCE_DATE_EPOCH asks for, zero when it
// is not set.
func SourceDateEpoch() (time.Time, error) {
	v, ok := os.LookupEnv("SOURCE_DATE_EPOCH")
	if !ok || v == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %q is not a number of seconds of 32 bits", v)
	}
	return unix(uint32(n)), nil
}

// A KeySigner signs with a secret key from a file. It is safe for concurrent
// use.
//
// Signatures are of version 4 with SHA-256, or the larger hash that a larger
// curve asks for, and nothing in them is random: go-crypto's salt notation, which it adds by default against faults in EdDSA,
// is turned off. In its place every signature is verified before it is handed
// out. ECDSA signatures are random by the algorithm and differ each time.
type KeySigner struct {
	priv *packet.PrivateKey
	key  *pubKey
	hash byte
	info Key // the primary key
	time time.Time
}

var _ Signer = (*KeySigner)(nil)

// ReadSigner reads a secret key file, armored or binary, and unlocks one key of
// it: the newest valid subkey for signing, else the primary key.
//
// The key has to be usable at the time of signing: a revoked, expired or weak
// one is refused, as are version 6 keys, which GnuPG 2 can not verify and whose
// signatures have to be random (errors.ErrUnsupported).
func ReadSigner(r io.Reader, opts *SignerOptions) (*KeySigner, error) {
	if opts == nil {
		opts = &SignerOptions{}
	}
	b, err := readAll(r, maxKeyFile, "secret key")
	if err != nil {
		return nil, err
	}
	p := parser{what: "secret key", secret: true}
	if err := p.file(b); err != nil {
		return nil, err
	}
	at := opts.Time
	if at.IsZero() {
		at = time.Now()
	}
	s, err := p.choose(opts.Key, at)
	if err != nil {
		return nil, err
	}
	s.time = opts.Time
	if err := s.unlock(opts.Passphrase); err != nil {
		return nil, err
	}
	return s, nil
}

// choose finds the key to sign with.
func (p *parser) choose(want string, at time.Time) (*KeySigner, error) {
	ring := &Keyring{byFP: map[string]*cert{}, keys: map[uint64][]member{}}
	for _, c := range p.certs {
		ring.add(c)
	}
	clean := ""
	if want != "" {
		if clean = cleanFingerprint(want, true); clean == "" {
			return nil, fmt.Errorf("openpgp: %q is neither a fingerprint nor a key id of 16 digits", want)
		}
	}
	is := func(k *pubKey) bool { return clean == upperHex(k.fp) || clean == keyIDString(k.id) }

	var found *KeySigner
	why := errors.New("no such key")
	if want == "" {
		why = errors.New("no key that can sign")
	}
	for i, c := range ring.certs {
		whole := clean == "" || is(c.key)
		var best *KeySigner
		consider := func(k *pubKey, revoked, invalid string, expires time.Time, sign bool) {
			priv, err := p.usable(k, revoked, invalid, expires, sign, at)
			if err != nil {
				why = fmt.Errorf("%s: %w", keyIDString(k.id), err)
				return
			}
			if best == nil || k.created.After(best.key.created) {
				best = &KeySigner{priv: priv, key: k, hash: k.signingHash(), info: ring.Keys()[i]}
			}
		}
		st := ring.evaluate(c, at)
		if st.revoked == "" && st.invalid == "" && (st.expires.IsZero() || at.Before(st.expires)) && c.key.weak() == "" {
			for _, s := range c.subs {
				if ss := c.evaluateSub(s, at); whole && ss.sign || is(s.key) {
					consider(s.key, ss.revoked, ss.invalid, ss.expires, ss.sign)
				}
			}
		}
		if best == nil && whole {
			consider(c.key, st.revoked, st.invalid, st.expires, st.sign)
		}
		if best != nil && found != nil {
			return nil, fmt.Errorf("openpgp: the file has several keys that can sign, name one: %s or %s",
				found.info.Fingerprint, best.info.Fingerprint)
		}
		if best != nil {
			found = best
		}
	}
	if found == nil {
		return nil, fmt.Errorf("openpgp: can not sign: %w", why)
	}
	return found, nil
}

// usable returns the secret key of k if it may sign at a time.
func (p *parser) usable(k *pubKey, revoked, invalid string, expires time.Time, sign bool, at time.Time) (*packet.PrivateKey, error) {
	switch {
	case invalid != "":
		return nil, errors.New(invalid)
	case revoked != "":
		return nil, errors.New("revoked: " + revoked)
	case !expires.IsZero() && !at.Before(expires):
		return nil, errors.New("expired on " + expires.Format(time.DateOnly))
	case at.Before(k.created):
		return nil, errors.New("created after the time of signing, on " + k.created.Format(time.DateOnly))
	case k.weak() != "":
		return nil, errors.New("too weak: " + k.weak())
	case !sign:
		return nil, errors.New("not for signing")
	case k.version != 4:
		return nil, formats.Unsupported(format, -1, "key", "signing with version %d", k.version)
	}
	for i := range p.secrets {
		if s := &p.secrets[i]; bytes.Equal(s.fp, k.fp) {
			return s.library()
		}
	}
	return nil, errors.New("no secret key")
}

// library gives a secret key to go-crypto.
func (s *secretPacket) library() (priv *packet.PrivateKey, err error) {
	if err := s.checkS2K(); err != nil {
		return nil, err
	}
	err = guard("secret key", func() error {
		p, err := packet.Read(bytes.NewReader(frame(s.tag, s.body)))
		if err != nil {
			return formats.Corrupt(format, -1, "secret key", "%v", err)
		}
		var ok bool
		if priv, ok = p.(*packet.PrivateKey); !ok || !bytes.Equal(priv.Fingerprint, s.fp) {
			return formats.Corrupt(format, -1, "secret key", "not the key it is filed as")
		}
		return nil
	})
	return priv, err
}

// String-to-key specifiers (RFC 9580 section 3.7.1); 101 is GnuPG's own, for
// keys that are elsewhere.
const (
	s2kArgon2 = 4
	s2kGNU    = 101
)

// checkS2K looks at how a secret key is locked: usage octet, cipher, AEAD mode
// for usage 253, specifier. It refuses stubs and functions that take too much
// memory.
func (s *secretPacket) checkS2K() error {
	f := &fields{b: s.secret}
	usage := f.u8()
	if usage == 0 {
		return nil
	}
	if usage < 253 {
		return formats.Unsupported(format, -1, "secret key", "string-to-key usage %d", usage)
	}
	f.u8()
	if usage == 253 {
		f.u8()
	}
	switch f.u8() {
	case s2kGNU:
		return errors.New("the secret key is not in the file (offline, or on a card)")
	case s2kArgon2:
		f.take(16 + 2)
		if m := f.u8(); m > maxArgon2 {
			return formats.Limit(format, -1, "secret key", "passphrase function of 2^%d KiB", m)
		}
	}
	if f.bad {
		return formats.Corrupt(format, -1, "secret key", "cut")
	}
	return nil
}

// ErrPassphrase: the passphrase is missing or wrong.
var ErrPassphrase = errors.New("passphrase missing or wrong")

// unlock decrypts the secret key.
func (s *KeySigner) unlock(passphrase func() ([]byte, error)) error {
	if !s.priv.Encrypted {
		return nil
	}
	if passphrase == nil {
		return fmt.Errorf("openpgp: key %s: %w", s.Fingerprint(), ErrPassphrase)
	}
	pass, err := passphrase()
	if err != nil {
		return err
	}
	defer clear(pass)
	return guard("secret key", func() error {
		if s.priv.Decrypt(pass) != nil {
			return fmt.Errorf("openpgp: key %s: %w", s.Fingerprint(), ErrPassphrase)
		}
		return nil
	})
}

// Key describes the primary key, with its subkeys and user ids.
func (s *KeySigner) Key() Key { return s.info }

// Fingerprint is that of the key or subkey that signs.
func (s *KeySigner) Fingerprint() string { return upperHex(s.key.fp) }

// signingHash is the hash to sign with: at least as long as the curve, or GnuPG
// refuses it.
func (k *pubKey) signingHash() byte {
	switch {
	case k.curve == "" || k.bits <= 256:
		return hashSHA256
	case k.bits <= 384:
		return hashSHA384
	}
	return hashSHA512
}

// DetachSign implements Signer.
func (s *KeySigner) DetachSign(ctx context.Context, message io.Reader) ([]byte, error) {
	_, h := newHash(s.hash)
	buf := make([]byte, bufferSize)
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := message.Read(buf)
		h.Write(buf[:n])
		off += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, formats.At(format, off, "message", err)
		}
	}
	sig, err := s.sign(sigBinary, h)
	if err != nil {
		return nil, err
	}
	return enarmor(armorSignature, sig), nil
}

// ClearSign implements Signer.
func (s *KeySigner) ClearSign(ctx context.Context, text []byte) ([]byte, error) {
	if err := checkSignable(text); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	_, h := newHash(s.hash)
	writeCanonical(h, canonicalText(text))
	sig, err := s.sign(sigText, h)
	if err != nil {
		return nil, err
	}
	return writeCleartext(s.hash, text, sig), nil
}

// checkSignable refuses text that could not be verified again.
func checkSignable(text []byte) error {
	if len(text) > maxCleartext/2 {
		return formats.Limit(format, -1, "cleartext", "%d bytes, at most %d", len(text), maxCleartext/2)
	}
	l := &lines{b: text}
	for {
		line, off, ok := l.next()
		if !ok {
			return nil
		}
		if len(line) > maxSignedLine {
			return formats.Limit(format, int64(off), "cleartext", "line of %d bytes, at most %d", len(line), maxSignedLine)
		}
	}
}

// sign makes a signature packet over what h was given, and verifies it.
func (s *KeySigner) sign(typ byte, h hash.Hash) ([]byte, error) {
	at := s.time
	if at.IsZero() {
		at = time.Now()
	}
	check, err := clone(h)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = guard("secret key", func() error {
		plain := false
		sig := &packet.Signature{
			Version:      4,
			SigType:      packet.SignatureType(typ),
			PubKeyAlgo:   s.priv.PubKeyAlgo,
			Hash:         cryptoHash(s.hash),
			CreationTime: at.Truncate(time.Second),
			IssuerKeyId:  &s.priv.KeyId,
		}
		if err := sig.Sign(h, s.priv, &packet.Config{NonDeterministicSignaturesViaNotation: &plain}); err != nil {
			return err
		}
		return sig.Serialize(&out)
	})
	if err != nil {
		return nil, formats.At(format, -1, "secret key", err)
	}
	p, _, err := nextPacket(out.Bytes(), 0)
	if err == nil {
		err = s.key.verify(parseSignature(p.body), check)
	}
	if err != nil {
		return nil, fmt.Errorf("openpgp: key %s: the signature just made is wrong: %w", s.Fingerprint(), err)
	}
	return out.Bytes(), nil
}
