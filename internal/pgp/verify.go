package pgp

import (
	"errors"
	"hash"
	"io"
	"time"

	"imgmaint/formats"
)

// Verify checks a detached signature, armored or binary, of one or several
// signatures, over a message that is read once and in a stream. Every signature
// gets a report; Result.Err has the verdict.
//
// An error means that there is nothing to report on: the message can not be
// read (that reader's error), the signature file is damaged (formats.ErrCorrupt),
// too large (formats.ErrLimit), holds compressed data (errors.ErrUnsupported) or
// no OpenPGP data (formats.ErrUnknown). The message is not read unless one of the
// signatures names a key of the keyring.
func (k *Keyring) Verify(signature []byte, message io.Reader, p *Policy) (*Result, error) {
	b, err := signatureBlock(signature)
	if err != nil {
		return nil, err
	}
	sigs, err := readSignatures(b)
	if err != nil {
		return nil, err
	}
	v := newVerifier(k, sigs, p, false, nil)
	if err := v.read(message); err != nil {
		return nil, err
	}
	return v.result()
}

// VerifyClearsigned checks a clear-signed message (RFC 9580 section 7). Outside
// of it there may be nothing but white space: what an InRelease carries around
// its signed part is an attack, not a comment.
//
// Result.Text is what was signed and nothing else: without dash-escaping,
// without the spaces, tabs and carriage returns at line ends, which the
// signature leaves out, and with one line feed after every line. It is there
// whatever the verdict; ask Result.Err before using it.
func (k *Keyring) VerifyClearsigned(message []byte, p *Policy) (*Result, error) {
	c, err := parseCleartext(message)
	if err != nil {
		return nil, err
	}
	sigs, err := readSignatures(c.signature)
	if err != nil {
		return nil, err
	}
	v := newVerifier(k, sigs, p, true, c.hashes)
	for _, run := range v.runs {
		writeCanonical(run.h, c.text)
	}
	res, err := v.result()
	if err != nil {
		return nil, err
	}
	res.Text = c.text
	return res, nil
}

// A verifier holds the signatures of one message while it is hashed.
type verifier struct {
	k       *Keyring
	at      time.Time
	skew    time.Duration
	policy  *Policy
	sigs    []*sigPacket
	reports []Signature
	members [][]member
	open    []bool // of each signature: its state takes the message
	run     []*run // of each signature, nil when there is nothing to hash
	runs    []*run
}

// A run is one hash over the message; signatures share it.
type run struct {
	hash byte
	text bool
	salt string
	h    hash.Hash
}

// newVerifier decides of each signature whether it is worth hashing for.
func newVerifier(k *Keyring, sigs []*sigPacket, p *Policy, clear bool, declared []byte) *verifier {
	if p == nil {
		p = &Policy{}
	}
	v := &verifier{k: k, policy: p, at: p.At, sigs: sigs,
		reports: make([]Signature, len(sigs)), members: make([][]member, len(sigs)),
		open: make([]bool, len(sigs)), run: make([]*run, len(sigs))}
	if v.at.IsZero() {
		v.at, v.skew = time.Now(), clockSkew
	}
	for i, s := range sigs {
		r := &v.reports[i]
		if s.version != 0 {
			r.Algorithm, r.Hash, r.Time, r.Expires = algorithmName(s.alg), hashName(s.hash), s.created, s.expires()
			r.Text = s.typ == sigText
		}
		if id, ok := s.keyID(); ok {
			r.KeyID = keyIDString(id)
		}
		if s.issuerFP != nil {
			r.Fingerprint = upperHex(s.issuerFP)
		}
		set := func(st Status, why string) { r.Status, r.Reason = st, why }
		switch {
		case s.unsupported != "":
			set(Unsupported, s.unsupported)
			continue
		case s.bad != "":
			set(BadSignature, s.bad)
			continue
		case clear && s.typ != sigText, !clear && s.typ != sigText && s.typ != sigBinary:
			set(Unsupported, signatureTypeName(s.typ))
			continue
		}
		if v.members[i] = k.candidates(s); len(v.members[i]) == 0 {
			set(UnknownKey, "")
			if r.KeyID == "" {
				r.Reason = "names no key"
			}
			continue
		}
		if clear && declared != nil && !contains(declared, s.hash) {
			set(BadSignature, r.Hash+" is not among the Hash headers")
			v.describe(r, v.members[i][0])
			continue
		}
		v.open[i] = true
		if _, h := newHash(s.hash); h == nil {
			if !weakHash(s.hash) {
				set(Unsupported, r.Hash)
				v.open[i] = false
			}
		} else {
			v.run[i] = v.share(s)
		}
	}
	return v
}

func contains(set []byte, b byte) bool {
	for _, c := range set {
		if c == b {
			return true
		}
	}
	return false
}

func signatureTypeName(typ byte) string {
	switch {
	case typ == sigBinary:
		return "a signature over bytes on clear-signed text"
	case sigGenericCert <= typ && typ <= sigPositiveCert:
		return "a signature over a user id"
	case typ == sigSubkeyBinding || typ == sigPrimaryBind || typ == sigDirectKey:
		return "a signature over a key"
	case typ == sigKeyRevoke || typ == sigSubkeyRevoke || typ == sigCertRevoke:
		return "a revocation"
	}
	return "signature of type 0x" + upperHex([]byte{typ})
}

// share returns the run that a signature needs.
func (v *verifier) share(s *sigPacket) *run {
	text := s.typ == sigText
	for _, r := range v.runs {
		if r.hash == s.hash && r.text == text && r.salt == string(s.salt) {
			return r
		}
	}
	r := &run{hash: s.hash, text: text, salt: string(s.salt), h: s.start()}
	v.runs = append(v.runs, r)
	return r
}

// candidates are the keys that the signature may have been made by.
func (k *Keyring) candidates(s *sigPacket) []member {
	id, ok := s.keyID()
	if !ok {
		return nil
	}
	var out []member
	for _, m := range k.keys[id] {
		if s.by(m.key()) && m.key().version == s.version && len(out) < maxCandidates {
			out = append(out, m)
		}
	}
	return out
}

// bufferSize is what is read of a message at a time, in bytes.
const bufferSize = 256 << 10

// read hashes a message.
func (v *verifier) read(r io.Reader) error {
	if len(v.runs) == 0 {
		return nil
	}
	filters := make([]io.Writer, len(v.runs))
	for i, run := range v.runs {
		filters[i] = run.h
		if run.text {
			filters[i] = &textWriter{w: run.h}
		}
	}
	buf := make([]byte, bufferSize)
	var off int64
	for empty := 0; ; {
		n, err := r.Read(buf)
		for _, w := range filters {
			w.Write(buf[:n])
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return formats.At(format, off, "message", err)
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty > 100 {
			return formats.At(format, off, "message", io.ErrNoProgress)
		}
	}
}

// result gives each signature its state.
func (v *verifier) result() (*Result, error) {
	for i, s := range v.sigs {
		if v.open[i] {
			v.decide(&v.reports[i], s, v.members[i], v.run[i])
		}
	}
	res := &Result{Signatures: v.reports}
	if err := res.verdict(v.policy); err != nil {
		return nil, err
	}
	return res, nil
}

// describe puts a key's facts into a report and returns its state.
func (v *verifier) describe(r *Signature, m member) (certState, subState) {
	key := m.key()
	st := v.k.evaluate(m.c, v.at)
	r.KeyID, r.Fingerprint, r.Primary = keyIDString(key.id), upperHex(key.fp), upperHex(m.c.key.fp)
	r.Bits, r.KeyExpires = key.bits, st.expires
	if st.primary >= 0 {
		r.UserID = text(m.c.uids[st.primary].id)
	}
	ss := subState{sign: st.sign}
	if m.sub != nil {
		ss = m.c.evaluateSub(m.sub, v.at)
		if !ss.expires.IsZero() && (r.KeyExpires.IsZero() || ss.expires.Before(r.KeyExpires)) {
			r.KeyExpires = ss.expires
		}
	}
	return st, ss
}

// decide tries the keys that a signature may be by.
func (v *verifier) decide(r *Signature, s *sigPacket, members []member, run *run) {
	var match error
	m := members[0]
	for _, try := range members {
		match = v.match(s, try.key(), run)
		if match == nil {
			m = try
			break
		}
	}
	key := m.key()
	st, ss := v.describe(r, m)
	set := func(status Status, why string) { r.Status, r.Reason = status, why }
	weak := key.weak()
	if weak == "" && m.sub != nil {
		if w := m.c.key.weak(); w != "" {
			weak = "primary key: " + w
		}
	}
	unchecked := errors.Is(match, errNotChecked)
	switch {
	case st.invalid != "":
		set(UnknownKey, st.invalid)
	case ss.invalid != "":
		set(UnknownKey, ss.invalid)
	case isUnsupported(match):
		set(Unsupported, match.Error())
	case match != nil && !unchecked:
		set(BadSignature, "")
	case st.revoked != "":
		set(RevokedKey, st.revoked)
	case ss.revoked != "":
		set(RevokedKey, "subkey: "+ss.revoked)
	case !ss.sign:
		set(NotForSigning, "")
	case weakHash(s.hash) && (unchecked || s.hash != hashSHA1 || !v.policy.AllowWeak):
		set(WeakDigest, r.Hash)
	case weak != "" && (unchecked || !v.policy.AllowWeak):
		set(WeakKey, weak)
	case s.created.After(v.at.Add(v.skew)):
		set(NotYetValid, "made in the future")
	case s.created.Before(key.created):
		set(NotYetValid, "made before its key")
	case key.created.After(v.at.Add(v.skew)), m.c.key.created.After(v.at.Add(v.skew)):
		set(NotYetValid, "by a key of the future")
	case !r.KeyExpires.IsZero() && !v.at.Before(r.KeyExpires):
		set(ExpiredKey, "")
	case !r.Expires.IsZero() && !v.at.Before(r.Expires):
		set(ExpiredSignature, "")
	default:
		set(Valid, "")
	}
}

// errNotChecked: there was no way to check, and need not be.
var errNotChecked = errors.New("not checked")

func (v *verifier) match(s *sigPacket, key *pubKey, run *run) error {
	if run == nil || (key.alg == algRSA || key.alg == algRSASign) && key.bits < noRSABits {
		return errNotChecked
	}
	h, err := clone(run.h)
	if err != nil {
		return err
	}
	return key.verify(s, h)
}

// clone copies a running hash.
func clone(h hash.Hash) (hash.Hash, error) {
	if c, ok := h.(hash.Cloner); ok {
		return c.Clone()
	}
	return nil, formats.Unsupported(format, -1, "hash", "%T", h)
}

// A textWriter brings text to the form that signatures of type 0x01 are over:
// lines that end in CR LF, whatever they ended in; a last line without an end
// keeps none. As GnuPG does, all carriage returns before a line feed belong to
// the line end, also at the very end of the text; other white space stays.
type textWriter struct {
	w   io.Writer
	crs int // held back: they may stand before a line feed
}

var (
	crlf     = []byte("\r\n")
	returns  = []byte("\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r\r")
	lineFeed = byte('\n')
)

func (t *textWriter) Write(p []byte) (int, error) {
	start := 0
	for i, c := range p {
		switch {
		case c == '\r':
			if t.crs == 0 {
				t.w.Write(p[start:i])
			}
			t.crs++
			start = i + 1
		case c == lineFeed:
			if t.crs == 0 {
				t.w.Write(p[start:i])
			}
			t.w.Write(crlf)
			t.crs, start = 0, i+1
		case t.crs > 0:
			t.flush()
			start = i
		}
	}
	if t.crs == 0 {
		t.w.Write(p[start:])
	}
	return len(p), nil
}

func (t *textWriter) flush() {
	for t.crs > 0 {
		n := min(t.crs, len(returns))
		t.w.Write(returns[:n])
		t.crs -= n
	}
}
