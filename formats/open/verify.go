package open

import (
	"crypto/x509"
	"strings"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/appliance/ovf"
	"imgmaint/formats/appliance/xvm"
)

// A Verdict sums up what is known of a package.
type Verdict string

const (
	Verified     Verdict = "verified"     // every member is as someone we trust signed it
	Intact       Verdict = "intact"       // every member is as listed; nobody we trust signed the list
	Incomplete   Verdict = "incomplete"   // what is listed is right; not all is listed
	Unverifiable Verdict = "unverifiable" // nothing is listed
	Damaged      Verdict = "damaged"      // something is not as listed or signed, or contradicts the rest
)

// A DigestState is how the bytes of a member meet what is listed of them.
type DigestState string

const (
	DigestOK       DigestState = "ok"
	DigestPartial  DigestState = "first MiB ok" // nothing is listed of the rest
	DigestMismatch DigestState = "mismatch"
	DigestMissing  DigestState = "missing"  // the member is
	DigestUnlisted DigestState = "unlisted" // no list has it
	DigestSeal     DigestState = "seal"     // a list or a signature itself
)

// A SignatureState is what became of a signature.
type SignatureState string

const (
	SignatureGood      SignatureState = "good"
	SignatureUntrusted SignatureState = "untrusted" // by nobody we trust, or with something against it
	SignatureBad       SignatureState = "bad"       // not over what it should be, or not readable
	SignatureUnchecked SignatureState = "unchecked"
)

// A Verification is what was found out about a package.
type Verification struct {
	Format          string              `json:"format"`
	Verdict         Verdict             `json:"verdict"`
	Reasons         []string            `json:"reasons,omitempty"` // why it is not verified
	DescriptorBound bool                `json:"descriptor-bound"`  // a list has the descriptor, rightly
	Members         []VerifiedMember    `json:"members"`
	Signatures      []VerifiedSignature `json:"signatures"`
	Findings        []string            `json:"findings,omitempty"` // rules of the format it breaks
}

// A VerifiedMember is the state of one member.
type VerifiedMember struct {
	Name      string      `json:"name"`
	Size      int64       `json:"size"` // as stored; -1 when missing
	Digest    DigestState `json:"digest"`
	Listed    bool        `json:"listed"`
	Signed    bool        `json:"signed"` // the list is, by someone we trust
	Algorithm string      `json:"algorithm,omitempty"`
	Weak      bool        `json:"weak,omitempty"` // the algorithm proves nothing against an attacker
	Expected  string      `json:"expected,omitempty"`
	Found     string      `json:"found,omitempty"`
}

// A VerifiedSignature is the state of one signature member.
type VerifiedSignature struct {
	Member  string         `json:"member"`
	Over    string         `json:"over"`
	Type    string         `json:"type"` // openpgp or x509
	State   SignatureState `json:"state"`
	Reason  string         `json:"reason,omitempty"`
	Signers []Signer       `json:"signers,omitempty"`
}

// A Signer is who made a signature. Unless the signature is good it is the
// signature's own word.
type Signer struct {
	Status      string    `json:"status"` // as the kind of signature has it: valid, unknown-key, ...
	Name        string    `json:"name,omitempty"`
	KeyID       string    `json:"key-id,omitempty"` // OpenPGP key id, or serial number
	Fingerprint string    `json:"fingerprint,omitempty"`
	Algorithm   string    `json:"algorithm,omitempty"` // of the key
	Hash        string    `json:"hash,omitempty"`
	Time        time.Time `json:"time,omitzero"` // made at; X.509 signatures tell none
	Expires     time.Time `json:"expires,omitzero"`
	Reason      string    `json:"reason,omitempty"`
}

// An OpenPGPCheck is what a checker of OpenPGP signatures found.
type OpenPGPCheck struct {
	State   SignatureState // good, untrusted or bad
	Text    []byte         // what a clear-signed file's signature covers
	Reason  string
	Signers []Signer
}

// VerifyOptions say whom to trust. Nil trusts nobody.
type VerifyOptions struct {
	// OpenPGP checks a signature: data over message, or, when clear, data
	// alone, with its text in the result. Nil leaves them unchecked.
	OpenPGP func(data, message []byte, clear bool) (OpenPGPCheck, error)
	// Roots end the chains of X.509 certificates; nil trusts none.
	Roots *x509.CertPool
	// Time is the time that certificates must be valid at.
	Time time.Time
	// Progress is called with the bytes done and all; an error of it ends the
	// work and is returned.
	Progress func(done, total int64) error
}

// Verify reads every member of a package and holds it against what the
// package lists and signs. The error is for what could not be read; all else
// is in the result.
func (p *Appliance) Verify(o *VerifyOptions) (*Verification, error) {
	if o == nil {
		o = &VerifyOptions{}
	}
	if p.xvm != nil {
		return p.verifyXVM(o)
	}
	return p.verifyOVF(o)
}

var xvmDigest = map[xvm.MemberState]DigestState{
	xvm.MemberVerified: DigestOK, xvm.MemberUnsigned: DigestOK, xvm.MemberFirstMiB: DigestPartial,
	xvm.MemberUnlisted: DigestUnlisted, xvm.MemberMismatch: DigestMismatch, xvm.MemberMissing: DigestMissing,
	xvm.MemberSeal: DigestSeal,
}

func (p *Appliance) verifyXVM(o *VerifyOptions) (*Verification, error) {
	xo := &xvm.VerifyOptions{Progress: o.Progress}
	if o.OpenPGP != nil {
		xo.CheckSignature = func(s *xvm.Signature) (xvm.SignatureResult, error) {
			c, err := o.OpenPGP(s.Data, s.Message, s.Form == xvm.ClearSigned)
			return xvm.SignatureResult{State: xvm.SignatureState(c.State), Text: c.Text, Reason: c.Reason, Detail: c.Signers}, err
		}
	}
	r, err := p.xvm.Verify(xo)
	if err != nil {
		return nil, err
	}
	v := &Verification{Format: p.Format, Verdict: Verdict(r.Verdict), Reasons: r.Reasons, DescriptorBound: r.DescriptorBound,
		Members: []VerifiedMember{}, Signatures: []VerifiedSignature{}, Findings: p.Descriptor().Problems}
	for _, m := range r.Members {
		v.Members = append(v.Members, VerifiedMember{Name: m.Name, Size: m.Size, Digest: xvmDigest[m.State],
			Listed: m.State != xvm.MemberUnlisted && m.State != xvm.MemberSeal, Signed: m.State == xvm.MemberVerified,
			Algorithm: strings.ToUpper(m.Algorithm), Weak: m.Weak, Expected: m.Expected, Found: m.Found})
	}
	for _, s := range r.Signatures {
		signers, _ := s.Detail.([]Signer)
		v.Signatures = append(v.Signatures, VerifiedSignature{s.Member, s.Over, "openpgp", SignatureState(s.State), s.Reason, signers})
	}
	return v, nil
}

var ovfDigest = map[ovf.MemberState]DigestState{
	ovf.MemberVerified: DigestOK, ovf.MemberMismatch: DigestMismatch, ovf.MemberMissing: DigestMissing,
	ovf.MemberUnlisted: DigestUnlisted, ovf.MemberUnknown: DigestUnlisted, ovf.MemberSeal: DigestSeal,
}

func (p *Appliance) verifyOVF(o *VerifyOptions) (*Verification, error) {
	sizes := p.virtualSizes()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.forget(len(p.held))
	r, err := p.ovf.Verify(&ovf.VerifyOptions{
		Trust:    ovf.TrustOptions{Roots: o.Roots, Time: o.Time},
		Progress: o.Progress,
		VirtualSize: func(d *ovf.Disk) (int64, bool) {
			n, ok := sizes[d.ID]
			return n, ok
		},
	})
	if err != nil {
		return nil, err
	}
	v := &Verification{Format: p.Format, Verdict: Verdict(r.Verdict), Reasons: r.Reasons, DescriptorBound: r.DescriptorBound,
		Members: []VerifiedMember{}, Signatures: []VerifiedSignature{}}
	signed := r.Signature != nil && r.Signature.State == ovf.SigValid
	for _, m := range r.Members {
		listed := m.State == ovf.MemberVerified || m.State == ovf.MemberMismatch || m.State == ovf.MemberMissing && m.Expected != ""
		v.Members = append(v.Members, VerifiedMember{Name: m.Name, Size: m.Size, Digest: ovfDigest[m.State], Listed: listed,
			Signed: signed && m.State == ovf.MemberVerified, Algorithm: m.Algorithm, Weak: m.Weak, Expected: m.Expected, Found: m.Found})
	}
	if s := r.Signature; s != nil && s.State != ovf.SigNone {
		v.Signatures = append(v.Signatures, certificate(r))
	}
	for _, f := range r.Findings {
		v.Findings = append(v.Findings, f.String())
	}
	return v, nil
}

func certificate(r *ovf.Report) VerifiedSignature {
	s := r.Signature
	v := VerifiedSignature{Over: r.Manifest, Type: "x509", Reason: s.Detail}
	for _, m := range r.Members {
		if m.Role == ovf.RoleCertificate {
			v.Member = m.Name
		}
	}
	switch s.State {
	case ovf.SigValid:
		v.State = SignatureGood
	case ovf.SigMalformed, ovf.SigMismatch:
		v.State = SignatureBad
	default:
		v.State = SignatureUntrusted
	}
	if c := s.Signer; c != nil {
		v.Signers = []Signer{{Status: string(s.State), Name: c.Subject, KeyID: c.Serial, Fingerprint: c.Fingerprint,
			Algorithm: c.Key, Hash: s.Algorithm, Expires: c.NotAfter}}
	}
	return v
}

// virtualSizes are the sizes of the disks that can be told without inflating
// any.
func (p *Appliance) virtualSizes() map[string]int64 {
	sizes := map[string]int64{}
	for _, k := range p.Descriptor().Disks {
		if k.Member == "" || k.Compression == "gzip" {
			continue
		}
		var img formats.Image
		var err error
		if img, _, err = p.Disk(k.ID); err == nil {
			sizes[k.ID] = img.Size()
		}
	}
	return sizes
}
