package pgp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Status is what became of one signature. When several apply the first in this
// order is reported: Unsupported, UnknownKey, BadSignature, RevokedKey,
// NotForSigning, WeakDigest, WeakKey, NotYetValid, ExpiredKey, ExpiredSignature.
// So WeakKey and all that follow tell of signatures that do match.
type Status uint8

const (
	// Unsupported: of a version, type, algorithm or with a critical subpacket
	// that we do not know. Nothing was checked.
	Unsupported Status = iota
	// Valid: made by a key of the keyring over exactly this message, and nothing
	// is against it.
	Valid
	// BadSignature: by a key of the keyring as it says, but it does not match the
	// message, or it is malformed.
	BadSignature
	// UnknownKey: the keyring has no usable key that the signature names.
	UnknownKey
	// ExpiredKey: the key, or its primary key, has expired at the time of
	// checking (gpgv's EXPKEYSIG).
	ExpiredKey
	// ExpiredSignature: the signature itself has expired (EXPSIG).
	ExpiredSignature
	// RevokedKey: the key, its primary key or all its names were revoked, at
	// whatever time and for whatever reason (REVKEYSIG).
	RevokedKey
	// WeakDigest: SHA-1, MD5 or RIPEMD160. With the last it was not checked
	// whether it matches.
	WeakDigest
	// WeakKey: RSA below 2048 bits, or DSA. RSA below 1024 bits is not checked.
	WeakKey
	// NotYetValid: made in the future, or before its key was.
	NotYetValid
	// NotForSigning: by a key whose owner did not make it for signing.
	NotForSigning
)

var statusNames = [...]string{
	Unsupported:      "unsupported",
	Valid:            "valid",
	BadSignature:     "bad-signature",
	UnknownKey:       "unknown-key",
	ExpiredKey:       "expired-key",
	ExpiredSignature: "expired-signature",
	RevokedKey:       "revoked-key",
	WeakDigest:       "weak-digest",
	WeakKey:          "weak-key",
	NotYetValid:      "not-yet-valid",
	NotForSigning:    "not-for-signing",
}

// String returns a stable name, as "expired-key".
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// MarshalText implements encoding.TextMarshaler with String.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Status) UnmarshalText(b []byte) error {
	i := slices.Index(statusNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("openpgp: unknown signature status %q", b)
	}
	*s = Status(i)
	return nil
}

// A Signature is the report on one signature. Of an UnknownKey everything is the
// signature's own word.
type Signature struct {
	Status      Status    `json:"status"`
	Reason      string    `json:"reason,omitempty"`      // more about a status that is not Valid
	KeyID       string    `json:"key-id,omitempty"`      // of the key that signed, 16 digits
	Fingerprint string    `json:"fingerprint,omitempty"` // of the key that signed, upper case; "" when not known
	Primary     string    `json:"primary,omitempty"`     // fingerprint of its primary key; "" for an UnknownKey
	UserID      string    `json:"user-id,omitempty"`     // primary user id of the key
	Algorithm   string    `json:"algorithm,omitempty"`   // RSA, DSA, ECDSA, EdDSA, Ed25519, ...
	Bits        int       `json:"bits,omitempty"`        // of the key
	Hash        string    `json:"hash,omitempty"`        // SHA256, SHA512, ...
	Time        time.Time `json:"time,omitzero"`         // made at
	Expires     time.Time `json:"expires,omitzero"`      // of the signature; zero for never
	KeyExpires  time.Time `json:"key-expires,omitzero"`  // of the key or its primary key, the earlier; zero for never
	Text        bool      `json:"text,omitempty"`        // over text with any line ends, not over exact bytes
}

// String is one line for people, as "valid: Debian Archive (RSA 4096, SHA256)
// 2026-01-02 key 0123...". It may hold control characters of the user id.
func (s *Signature) String() string {
	var b strings.Builder
	b.WriteString(s.Status.String())
	if s.Reason != "" {
		b.WriteString(" (" + s.Reason + ")")
	}
	b.WriteString(":")
	if s.UserID != "" {
		b.WriteString(" " + s.UserID)
	}
	if s.Algorithm != "" {
		b.WriteString(" (" + s.Algorithm)
		if s.Bits > 0 {
			fmt.Fprintf(&b, " %d", s.Bits)
		}
		if s.Hash != "" {
			b.WriteString(", " + s.Hash)
		}
		b.WriteString(")")
	}
	if !s.Time.IsZero() {
		b.WriteString(" " + s.Time.UTC().Format(time.RFC3339))
	}
	switch {
	case s.Fingerprint != "":
		b.WriteString(" key " + s.Fingerprint)
	case s.KeyID != "":
		b.WriteString(" key id " + s.KeyID)
	default:
		b.WriteString(" of no key")
	}
	return b.String()
}

// A Policy says what is asked of signatures. nil asks for the default, which is
// the strictest.
type Policy struct {
	// At is the time of checking, which decides what has expired and what is not
	// yet valid. Zero is now; signatures made up to 10 seconds ahead of this
	// machine's clock are let pass then.
	At time.Time
	// AllowWeak lets SHA-1, short RSA keys and DSA be Valid. MD5, RIPEMD160 and
	// RSA below 1024 bits never are.
	AllowWeak bool
	// Trusted are the fingerprints, of primary keys or of subkeys, whose
	// signatures count for the verdict; empty for all keys of the keyring. Blanks
	// and lower case are allowed. Key ids are not: they can be forged.
	Trusted []string
	// Threshold is the number of different primary keys that have to have signed;
	// 0 stands for 1.
	Threshold int
}

// clockSkew is how far ahead of our clock a signer's may be, when Policy.At does
// not fix the time. It is apt's Acquire::Max-FutureTime.
const clockSkew = 10 * time.Second

// A Result is the report on the signatures of one message.
type Result struct {
	Signatures []Signature `json:"signatures"`
	Trusted    bool        `json:"trusted"`          // the verdict
	Reason     string      `json:"reason,omitempty"` // why not trusted
	// Text is what was clear-signed, nil for detached signatures. See
	// Keyring.VerifyClearsigned.
	Text []byte `json:"-"`
}

// ErrNotTrusted: the signatures do not add up to what the policy asks for.
var ErrNotTrusted = errors.New("not signed by a trusted key")

// Err is nil when the result is trusted, else an error that wraps ErrNotTrusted
// and says why.
func (r *Result) Err() error {
	if r.Trusted {
		return nil
	}
	return fmt.Errorf("openpgp: %w: %s", ErrNotTrusted, r.Reason)
}

// verdict sets Trusted: enough different primary keys have a Valid signature,
// and no signature is a BadSignature. (A signature by a known key over something
// else says that the file is not what that key's owner signed; gpgv fails then
// as well.)
func (r *Result) verdict(p *Policy) error {
	var trusted []string
	for _, t := range p.Trusted {
		fp := cleanFingerprint(t, false)
		if fp == "" {
			return fmt.Errorf("openpgp: policy: %q is not a fingerprint", t)
		}
		trusted = append(trusted, fp)
	}
	signers := map[string]bool{}
	var against []string
	bad := false
	for i := range r.Signatures {
		s := &r.Signatures[i]
		switch {
		case s.Status == BadSignature:
			bad = true
			against = append(against, s.String())
		case s.Status != Valid:
			against = append(against, s.String())
		case len(trusted) > 0 && !slices.Contains(trusted, s.Primary) && !slices.Contains(trusted, s.Fingerprint):
			against = append(against, "not among the trusted keys: "+s.String())
		default:
			signers[s.Primary] = true
		}
	}
	need := max(p.Threshold, 1)
	r.Trusted = len(signers) >= need && !bad
	switch {
	case r.Trusted:
	case len(against) > 0:
		r.Reason = strings.Join(against, "; ")
	default:
		r.Reason = fmt.Sprintf("%d of %d keys", len(signers), need)
	}
	return nil
}
