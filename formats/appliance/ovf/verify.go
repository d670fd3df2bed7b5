package ovf

import (
	"encoding/hex"
	"errors"
	"io"
	"path"
	"strings"

	"imgmaint/formats"
)

// A MemberState is what is known of one member.
type MemberState string

const (
	MemberVerified MemberState = "verified"  // its digest is that of the manifest
	MemberMismatch MemberState = "mismatch"  // it is not
	MemberMissing  MemberState = "missing"   // listed, or referred to, and not there
	MemberUnlisted MemberState = "unlisted"  // not in the manifest
	MemberSeal     MemberState = "seal"      // the manifest or the certificate itself
	MemberUnknown  MemberState = "unchecked" // there is no manifest to check against
)

// A MemberReport is the state of one member.
type MemberReport struct {
	Name      string      `json:"name"`
	Role      Role        `json:"role"`
	Size      int64       `json:"size"` // bytes, -1 when missing
	State     MemberState `json:"state"`
	Algorithm string      `json:"algorithm,omitempty"`
	Weak      bool        `json:"weak,omitempty"`     // the algorithm proves nothing against an attacker
	Expected  string      `json:"expected,omitempty"` // hex
	Found     string      `json:"found,omitempty"`
}

// A Verdict sums a Report up.
type Verdict string

const (
	// Verified: every member is as the manifest lists it, and the manifest is
	// signed by someone a given root vouches for.
	Verified Verdict = "verified"
	// Intact: every member is as the manifest lists it, but nobody we trust
	// signed that.
	Intact Verdict = "intact"
	// Incomplete: what is listed is right, but members are not listed.
	Incomplete Verdict = "incomplete"
	// Unverifiable: there is no manifest.
	Unverifiable Verdict = "unverifiable"
	// Damaged: a member is missing or is not as listed, a seal cannot be read
	// or is not of this package, or the package contradicts itself.
	Damaged Verdict = "damaged"
)

// A Report is the result of Verify.
type Report struct {
	Verdict         Verdict          `json:"verdict"`
	Reasons         []string         `json:"reasons,omitempty"` // why it is not verified
	Members         []MemberReport   `json:"members"`
	Manifest        string           `json:"manifest,omitempty"`  // name, "" for none
	Algorithm       string           `json:"algorithm,omitempty"` // of the manifest
	DescriptorBound bool             `json:"descriptor-bound"`    // the manifest lists the descriptor, rightly
	Signature       *SignatureReport `json:"signature"`
	Findings        []Finding        `json:"findings,omitempty"`
}

// VerifyOptions say how to verify. Nil trusts nobody.
type VerifyOptions struct {
	Trust TrustOptions
	// VirtualSize is as in ValidateOptions.
	VirtualSize func(d *Disk) (int64, bool)
	// Progress is called after each block read with the bytes done so far of
	// all; an error from it ends the work and is returned.
	Progress func(done, total int64) error
}

// verifyBlock is how much is read and hashed at a time.
const verifyBlock = 1 << 18

// Verify reads every member once and compares it with the manifest, checks
// the signature, and the rules of Check. The error is for what could not be
// read; everything else is in the report.
func (p *Package) Verify(opts *VerifyOptions) (*Report, error) {
	if opts == nil {
		opts = &VerifyOptions{}
	}
	r := &Report{Findings: p.Check(opts.VirtualSize)}
	v := &verification{p: p, opts: opts, report: r, listed: map[string]*ManifestEntry{}}
	if err := v.members(); err != nil {
		return nil, err
	}
	v.signature()
	v.verdict()
	return r, nil
}

type verification struct {
	p           *Package
	opts        *VerifyOptions
	report      *Report
	listed      map[string]*ManifestEntry // not yet seen
	done, total int64
	buf         []byte
}

// names are the spellings under which the manifest may list a member: its
// name, or the href that refers to it.
func (v *verification) entry(m *member) *ManifestEntry {
	names := []string{m.name}
	if m.file >= 0 {
		href := v.p.env.Files[m.file].Href
		if dec, ok := strings.CutPrefix(m.name, v.p.hrefName(m.file)); ok {
			names = append(names, href+dec) // with the number of a chunk
		}
	}
	for _, n := range names {
		if e := v.listed[n]; e != nil {
			delete(v.listed, n)
			return e
		}
	}
	return nil
}

// hrefName is the member name that file i refers to, without a chunk number.
func (p *Package) hrefName(i int) string {
	if len(p.parts[i]) == 0 {
		return ""
	}
	name := p.parts[i][0]
	if p.env.Files[i].ChunkSize > 0 {
		name = strings.TrimSuffix(name, path.Ext(name))
	}
	return name
}

func (v *verification) members() error {
	p := v.p
	if p.manifest != nil {
		v.report.Algorithm = p.manifest.Algorithm
		for i := range p.manifest.Entries {
			e := &p.manifest.Entries[i]
			v.listed[e.File] = e
		}
	}
	for i := range p.members {
		switch m := &p.members[i]; m.role {
		case RoleManifest:
			v.report.Manifest = m.name
		case RoleCertificate:
		default:
			v.total += m.size
		}
	}
	for i := range p.members {
		m := &p.members[i]
		mr := MemberReport{Name: m.name, Role: m.role, Size: m.size}
		if m.role == RoleManifest || m.role == RoleCertificate {
			mr.State = MemberSeal
			v.report.Members = append(v.report.Members, mr)
			continue
		}
		if err := v.member(m, &mr); err != nil {
			return err
		}
		if m.role == RoleDescriptor {
			v.report.DescriptorBound = mr.State == MemberVerified
		}
		v.report.Members = append(v.report.Members, mr)
	}
	if p.manifest != nil {
		for i := range p.manifest.Entries {
			if e := &p.manifest.Entries[i]; v.listed[e.File] == e {
				v.report.Members = append(v.report.Members, MemberReport{Name: e.File, Role: RoleFile, Size: -1,
					State: MemberMissing, Algorithm: e.Algorithm, Expected: e.Digest})
			}
		}
	}
	return nil
}

// member hashes one member. The descriptor is hashed as it was parsed: what
// was understood is what is vouched for.
func (v *verification) member(m *member, mr *MemberReport) error {
	if v.p.manifest == nil {
		mr.State = MemberUnknown
		return v.step(m.size)
	}
	e := v.entry(m)
	if e == nil {
		mr.State = MemberUnlisted
		return v.step(m.size)
	}
	mr.Algorithm, mr.Weak, mr.Expected = e.Algorithm, weakDigest(e.Algorithm), e.Digest
	h := algorithms[e.Algorithm].New()
	if m.role == RoleDescriptor {
		h.Write(v.p.env.Bytes())
		if err := v.step(m.size); err != nil {
			return err
		}
	} else if err := v.read(m, h); err != nil {
		return err
	}
	mr.Found = hex.EncodeToString(h.Sum(nil))
	if mr.State = MemberMismatch; mr.Found == mr.Expected {
		mr.State = MemberVerified
	}
	return nil
}

// Digests hashes the files of References in their order, chunk by chunk: what
// WriterOptions.Files takes.
func (p *Package) Digests(algorithm string, progress func(done, total int64) error) ([]ManifestEntry, error) {
	a, ok := algorithms[algorithm]
	if !ok {
		return nil, formats.Unsupported(Name, -1, "manifest", "algorithm %q", clip(algorithm))
	}
	v := &verification{p: p, opts: &VerifyOptions{Progress: progress}}
	var list []*member
	seen := map[string]bool{}
	for _, parts := range p.parts {
		for _, name := range parts {
			if !seen[name] {
				seen[name] = true
				list = append(list, &p.members[p.byName[name]])
				v.total += p.members[p.byName[name]].size
			}
		}
	}
	out := make([]ManifestEntry, 0, len(list))
	for _, m := range list {
		h := a.New()
		if err := v.read(m, h); err != nil {
			return nil, err
		}
		out = append(out, ManifestEntry{algorithm, m.name, hex.EncodeToString(h.Sum(nil))})
	}
	return out, nil
}

func (v *verification) step(n int64) error {
	v.done += n
	if v.opts.Progress != nil {
		return v.opts.Progress(v.done, v.total)
	}
	return nil
}

func (v *verification) read(m *member, w io.Writer) error {
	f, err := v.p.Open(m.name)
	if err != nil {
		return formats.At(Name, -1, clip(m.name), err)
	}
	defer f.Close()
	if v.buf == nil {
		v.buf = make([]byte, verifyBlock)
	}
	for left := m.size; left > 0; {
		b := v.buf[:min(left, verifyBlock)]
		n, err := io.ReadFull(f, b)
		w.Write(b[:n])
		left -= int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return formats.Corrupt(Name, m.size-left, clip(m.name), "the file ended while it was read")
		}
		if err != nil {
			return formats.At(Name, m.size-left, clip(m.name), err)
		}
		if err := v.step(int64(n)); err != nil {
			return err
		}
	}
	var more [1]byte
	if n, _ := f.Read(more[:]); n > 0 { // a file that grew is not the one that was sized
		return formats.Corrupt(Name, m.size, clip(m.name), "the file grew while it was read")
	}
	return nil
}

func (v *verification) signature() {
	p := v.p
	switch {
	case p.certErr != nil:
		v.report.Signature = &SignatureReport{State: SigMalformed, Detail: p.certErr.Error()}
	case p.signed != nil && p.mf == nil:
		v.report.Signature = &SignatureReport{State: SigMismatch, Detail: "there is no manifest"}
	default:
		v.report.Signature = VerifySignature(p.signed, path.Base(v.report.Manifest), p.mf, &v.opts.Trust)
	}
}

// verdict weighs everything; the worst counts.
func (v *verification) verdict() {
	r := v.report
	rank := map[Verdict]int{Verified: 0, Intact: 1, Incomplete: 2, Unverifiable: 3, Damaged: 4}
	r.Verdict = Verified
	worse := func(to Verdict, reason string) {
		if rank[to] > rank[r.Verdict] {
			r.Verdict = to
		}
		if len(r.Reasons) < maxProblems {
			r.Reasons = append(r.Reasons, reason)
		}
	}
	if v.p.mfErr != nil {
		worse(Damaged, v.p.mfErr.Error())
	} else if v.p.manifest == nil {
		worse(Unverifiable, "there is no manifest")
	}
	weak := false
	for _, m := range r.Members {
		switch m.State {
		case MemberMismatch, MemberMissing:
			worse(Damaged, string(m.State)+": "+m.Name)
		case MemberUnlisted:
			worse(Incomplete, string(m.State)+": "+m.Name)
		}
		weak = weak || m.Weak
	}
	switch s := r.Signature; s.State {
	case SigValid:
		if weak {
			worse(Intact, "the manifest is of SHA1, which proves nothing")
		}
	case SigMalformed, SigMismatch:
		worse(Damaged, "signature: "+string(s.State)+": "+s.Detail)
	case SigNone:
		worse(Intact, "unsigned")
	default:
		worse(Intact, "signature: "+string(s.State)+": "+s.Detail)
	}
	for _, f := range r.Findings {
		switch {
		case f.Level == Fault && contradiction[f.Rule]:
			worse(Damaged, f.String())
		case f.Level == Fault && f.Rule == "href":
			worse(Incomplete, f.String()) // a file outside, which no manifest covers
		}
	}
}

// contradiction are the rules whose breach means that the package is not what
// it says, where the others only offend the schema.
var contradiction = map[string]bool{"missing": true, "size": true, "chunks": true, "certificate": true}
