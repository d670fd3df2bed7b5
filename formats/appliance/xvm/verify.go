package xvm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"imgmaint/formats"
	"imgmaint/formats/internal/gzindex"
	"imgmaint/formats/internal/manifest"
	"imgmaint/formats/internal/tarindex"
)

// A MemberState is what is known of one member.
type MemberState string

const (
	// MemberVerified: its digest is that of a list which is signed, and the
	// signature is good.
	MemberVerified MemberState = "verified"
	// MemberUnsigned: its digest is that of a list, but nobody we trust signed
	// the list.
	MemberUnsigned MemberState = "listed but unsigned"
	// MemberFirstMiB: the first MiB is what the list says; nothing is known of
	// the rest. So are the lists of Enomaly's XVM 2 producer.
	MemberFirstMiB MemberState = "matches the first-MiB digest"
	MemberUnlisted MemberState = "not listed"
	MemberMismatch MemberState = "mismatch"
	MemberMissing  MemberState = "missing" // listed, and not in the package
	MemberSeal     MemberState = "seal"    // a list or a signature itself
)

// A MemberReport is the state of one member.
type MemberReport struct {
	Name      string      `json:"name"`
	Size      int64       `json:"size"` // as stored; -1 when missing
	State     MemberState `json:"state"`
	List      string      `json:"list,omitempty"` // the one the rest is about
	Algorithm string      `json:"algorithm,omitempty"`
	Weak      bool        `json:"weak,omitempty"` // the algorithm proves nothing against an attacker
	Of        string      `json:"of,omitempty"`   // what was digested: stored or decoded
	Expected  string      `json:"expected,omitempty"`
	Found     string      `json:"found,omitempty"` // of the stored bytes
}

// A SignatureState is what became of a signature.
type SignatureState string

const (
	SignatureGood      SignatureState = "good"
	SignatureUntrusted SignatureState = "untrusted" // by nobody we trust, or with something against it
	SignatureBad       SignatureState = "bad"       // not over what it should be, or not readable
	SignatureUnchecked SignatureState = "unchecked" // the caller did not ask
)

// A SignatureResult is what a checker found out.
type SignatureResult struct {
	State  SignatureState // good, untrusted or bad
	Text   []byte         // what a clear-signed file's signature covers
	Reason string         // why not good
	Detail any            // for people and JSON: signer, key, algorithm, time
}

// A SignatureReport is the state of one signature.
type SignatureReport struct {
	Signature
	State  SignatureState `json:"state"`
	Reason string         `json:"reason,omitempty"`
	Detail any            `json:"detail,omitempty"`
}

// A DiskReport tells whether a disk is what the descriptor declares.
type DiskReport struct {
	ID       string `json:"id"`
	State    string `json:"state"` // matches, mismatch, undeclared, unchecked
	Expected string `json:"expected,omitempty"`
	Found    string `json:"found,omitempty"`
}

// A Verdict sums a Report up.
type Verdict string

const (
	// Verified: every member is in a list that someone we trust signed.
	Verified Verdict = "verified"
	// Intact: every member is as a list says, but no such signature, or no
	// digest that withstands an attacker, vouches for it.
	Intact Verdict = "intact"
	// Incomplete: what is listed is right, but not all is listed.
	Incomplete Verdict = "incomplete"
	// Unverifiable: there is no list.
	Unverifiable Verdict = "unverifiable"
	// Damaged: something is not as a list or the descriptor says, is missing,
	// or a list or a signature is wrong.
	Damaged Verdict = "damaged"
)

// A Report is the result of Verify.
type Report struct {
	Verdict         Verdict           `json:"verdict"`
	Reasons         []string          `json:"reasons,omitempty"` // why it is not verified
	DescriptorBound bool              `json:"descriptor-bound"`  // a list has the descriptor, rightly
	Members         []MemberReport    `json:"members"`
	Signatures      []SignatureReport `json:"signatures"`
	Disks           []DiskReport      `json:"disks,omitempty"`
}

// VerifyOptions say how to verify. Nil trusts nobody.
type VerifyOptions struct {
	// CheckSignature reports on a signature: of a detached one, Data over
	// Message; of a clear-signed one, Data alone, with Text in the result. An
	// error makes the signature bad. Nil leaves all unchecked.
	CheckSignature func(s *Signature) (SignatureResult, error)
	// Legacy lets a package be verified by SHA-1 or MD5 alone, and past
	// clear-signed lists, armor with header lines and extended tar headers,
	// which hold bytes that no signature covers.
	Legacy bool
	// Content compares disks with the digests the descriptor declares of them.
	// It reads every disk once more.
	Content bool
	// Decode opens a disk that is not raw, for Content: stored is what OpenDisk
	// returns. Nil leaves those disks unchecked.
	Decode func(k formats.PackageDisk, stored formats.Image) (formats.Image, error)
	// Progress is called after each block of the members with the bytes done
	// and all. An error of it ends the work and is returned.
	Progress func(done, total int64) error
}

type verification struct {
	p           *Package
	opts        *VerifyOptions
	report      *Report
	signed      map[string]bool    // lists with a good signature
	listed      map[string][]claim // by member
	done, total int64
	stopped     error // of Progress
}

// A progressWriter gives the caller a chance to stop.
type progressWriter struct {
	io.Writer
	v *verification
}

func (w progressWriter) Write(p []byte) (int, error) {
	if err := w.v.progress(0); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

// A claim is what a list says of a member.
type claim struct {
	list  *list
	entry manifest.Entry
	alias bool // the list names it without .gz
}

// Verify reads every member once, and those once more whose digests are of
// what is inside a gzip file. The error is for what could not be read or
// decided; all else is in the report.
func (p *Package) Verify(opts *VerifyOptions) (*Report, error) {
	if opts == nil {
		opts = &VerifyOptions{}
	}
	v := &verification{p: p, opts: opts, report: &Report{Members: []MemberReport{}, Signatures: []SignatureReport{}},
		signed: map[string]bool{}, listed: map[string][]claim{}}
	v.signatures()
	missing := v.claims()
	for _, m := range p.archive.Members() {
		v.total += m.Size
	}
	for _, m := range p.archive.Members() {
		r, err := v.member(m)
		if err != nil {
			return nil, err
		}
		v.report.Members = append(v.report.Members, r)
	}
	v.report.Members = append(v.report.Members, missing...)
	if opts.Content {
		if err := v.disks(); err != nil {
			return nil, err
		}
	}
	v.verdict()
	return v.report, nil
}

func (v *verification) signatures() {
	bad := map[string]bool{}
	for _, s := range v.p.sigs {
		r := SignatureReport{Signature: s, State: SignatureUnchecked}
		switch {
		case s.Message == nil:
			r.State, r.Reason = SignatureBad, "there is no member "+s.Over
		case s.Form == Unrecognised:
			r.State, r.Reason = SignatureBad, "not an armored signature"
		case v.opts.CheckSignature != nil:
			res, err := v.opts.CheckSignature(&s)
			r.State, r.Reason, r.Detail = res.State, res.Reason, res.Detail
			switch {
			case err != nil:
				r.State, r.Reason = SignatureBad, err.Error()
			case res.State == SignatureGood && s.Form == ClearSigned && !s.Covers(res.Text):
				r.State, r.Reason = SignatureBad, "signs another text than "+s.Over
			case res.State != SignatureGood && res.State != SignatureUntrusted:
				r.State = SignatureBad
			}
		}
		if r.State == SignatureGood {
			v.signed[s.Over] = true
		} else {
			bad[s.Over] = true
		}
		v.report.Signatures = append(v.report.Signatures, r)
	}
	for over := range bad { // one that is good does not make up for one that is not
		delete(v.signed, over)
	}
}

// claims sorts the lists by member, and returns what is listed and not there.
func (v *verification) claims() (missing []MemberReport) {
	for _, l := range v.p.lists {
		for _, e := range l.entries {
			c := claim{list: l, entry: e}
			name := e.Name
			_, ok := v.p.archive.Member(name)
			if !ok {
				c.alias = true
				name += ".gz"
				_, ok = v.p.archive.Member(name)
			}
			if !ok {
				missing = append(missing, MemberReport{Name: e.Name, Size: -1, State: MemberMissing, List: l.name,
					Algorithm: string(e.Algorithm), Expected: e.Digest})
				continue
			}
			v.listed[name] = append(v.listed[name], c)
		}
	}
	return missing
}

func (v *verification) progress(n int) error {
	v.done += int64(n)
	if v.opts.Progress == nil {
		return nil
	}
	v.stopped = v.opts.Progress(v.done, v.total)
	return v.stopped
}

// digester has the digests that claims need.
func digester(claims []claim) *manifest.Digester {
	var algs []manifest.Algorithm
	first := false
	for _, c := range claims {
		algs = append(algs, c.entry.Algorithm)
		first = first || c.entry.Form == manifest.XVM2
	}
	d := manifest.NewDigester(algs...)
	if first {
		d.First(manifest.MD5, firstMiB)
	}
	return d
}

// matches reports how what was digested meets a claim.
func matches(e manifest.Entry, d *manifest.Digester) (whole, first bool) {
	if d == nil || e.Size >= 0 && e.Size != d.Size() {
		return false, false
	}
	whole = d.Sum(e.Algorithm) == e.Digest
	first = e.Form == manifest.XVM2 && e.Algorithm == manifest.MD5 && d.SumFirst(manifest.MD5) == e.Digest
	return whole, first
}

func (v *verification) member(m tarindex.Member) (MemberReport, error) {
	claims := v.listed[m.Name]
	r := MemberReport{Name: m.Name, Size: m.Size, State: MemberUnlisted}
	stored := digester(claims)
	f := v.p.archive.OpenMember(m)
	buf := make([]byte, copyBlock)
	var head [3]byte
	for off := int64(0); off < m.Size; {
		b := buf[:min(copyBlock, m.Size-off)]
		if n, err := f.ReadAt(b, off); n < len(b) {
			return r, formats.At(v.p.format, m.Off+off, m.Name, err)
		}
		if off == 0 {
			copy(head[:], b)
		}
		stored.Write(b)
		off += int64(len(b))
		if err := v.progress(len(b)); err != nil {
			return r, err
		}
	}
	if len(claims) == 0 {
		if reserved(m.Name) && m.Name != v.p.descriptorName() {
			r.State = MemberSeal
		}
		return r, nil
	}

	// What the stored bytes do not meet, what is inside may.
	var decoded *manifest.Digester
	for _, c := range claims {
		if whole, first := matches(c.entry, stored); !c.alias && (whole || first) || head != [3]byte{0x1f, 0x8b, 8} {
			continue
		}
		d := digester(claims)
		_, err := gzindex.Open(f, m.Size, &gzindex.Options{Format: v.p.format + ": " + clip(m.Name), MaxSize: v.p.maxDisk, Memory: 1, Tee: progressWriter{d, v}})
		if v.stopped != nil {
			return r, v.stopped
		}
		switch {
		case err == nil:
			decoded = d
		case !classed(err):
			return r, err
		}
		break
	}
	rank := 0
	for _, c := range claims {
		e := c.entry
		n := MemberReport{Name: m.Name, Size: m.Size, List: c.list.name, Algorithm: string(e.Algorithm), Weak: e.Algorithm.Weak(),
			Expected: e.Digest, Found: stored.Sum(e.Algorithm), Of: "stored"}
		whole, first := matches(e, stored)
		if c.alias || !whole && !first {
			whole, first = matches(e, decoded)
			n.Of = "decoded"
		}
		this := 0
		switch {
		case whole && v.signed[c.list.name]:
			n.State, this = MemberVerified, 3
		case whole:
			n.State, this = MemberUnsigned, 2
		case first:
			n.State, this = MemberFirstMiB, 1
		default:
			n.State, this, n.Of = MemberMismatch, 9, ""
		}
		// A mismatch counts most, then what vouches best.
		if this *= 2; !n.Weak {
			this++
		}
		if this > rank {
			rank, r = this, n
		}
	}
	return r, nil
}

// classed tells what a file is from what a reader suffers.
func classed(err error) bool {
	return errors.Is(err, formats.ErrCorrupt) || errors.Is(err, formats.ErrLimit) || errors.Is(err, formats.ErrUnknown) ||
		errors.Is(err, errors.ErrUnsupported)
}

// disks compares the content of disks with the descriptor.
func (v *verification) disks() error {
	for _, k := range v.p.desc.Disks {
		if k.Member == "" {
			continue
		}
		r := DiskReport{ID: k.ID, State: "undeclared", Expected: k.SHA256}
		if k.SHA256 != "" {
			sum, err := v.content(k)
			switch {
			case v.stopped != nil:
				return v.stopped
			case err != nil && !classed(err):
				return err
			case err != nil:
				r.State = "mismatch"
				v.reason("disk %s: %v", k.ID, err)
			case sum == "":
				r.State = "unchecked"
			case sum == k.SHA256:
				r.State = "matches"
			default:
				r.State = "mismatch"
			}
			r.Found = sum
		}
		v.report.Disks = append(v.report.Disks, r)
	}
	return nil
}

// content is the SHA-256 of a disk as the guest sees it.
func (v *verification) content(k formats.PackageDisk) (string, error) {
	img, err := v.p.OpenDisk(k.ID, nil)
	if err != nil {
		return "", err
	}
	if k.Format != "raw" {
		if v.opts.Decode == nil {
			return "", nil
		}
		if img, err = v.opts.Decode(k, img); err != nil {
			return "", err
		}
	}
	h := sha256.New()
	if _, err := io.Copy(progressWriter{h, v}, io.NewSectionReader(img, 0, img.Size())); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (v *verification) reason(msg string, args ...any) {
	if len(v.report.Reasons) < maxProblems {
		v.report.Reasons = append(v.report.Reasons, fmt.Sprintf(msg, args...))
	}
}

func (v *verification) verdict() {
	r := v.report
	damaged, incomplete, intact := false, false, false
	for _, l := range v.p.lists {
		if l.err != nil {
			damaged = true
			v.reason("%v", l.err)
		}
	}
	for _, m := range r.Members {
		switch m.State {
		case MemberMismatch, MemberMissing:
			damaged = true
			v.reason("%s: %s", m.Name, m.State)
		case MemberUnlisted, MemberFirstMiB:
			if len(v.p.lists) > 0 {
				incomplete = true
				v.reason("%s: %s", m.Name, m.State)
			}
		case MemberUnsigned:
			intact = true
		case MemberVerified:
			if m.Weak && !v.opts.Legacy {
				intact = true
				v.reason("%s: only %s vouches for it", m.Name, m.Algorithm)
			}
		}
		if m.Name == v.p.descriptorName() {
			r.DescriptorBound = m.State == MemberVerified || m.State == MemberUnsigned
		}
	}
	if len(v.p.lists) > 0 && !r.DescriptorBound {
		incomplete = true
		v.reason("descriptor not bound by the manifest")
	}
	if len(r.Signatures) == 0 {
		intact = true
		v.reason("unsigned")
	}
	for _, s := range r.Signatures {
		switch {
		case s.State == SignatureBad:
			damaged = true
			v.reason("%s: bad signature: %s", s.Member, s.Reason)
		case s.State != SignatureGood:
			intact = true
			v.reason("%s: signature %s", s.Member, strings.TrimSuffix(string(s.State)+": "+s.Reason, ": "))
		case !s.Bare && !v.opts.Legacy:
			intact = true
			v.reason("%s: holds bytes that its signature does not cover", s.Member)
		}
	}
	for _, d := range r.Disks {
		if d.State == "mismatch" {
			damaged = true
			v.reason("disk %s: content is not as declared", d.ID)
		}
	}
	if i := slices.IndexFunc(v.p.archive.Members(), func(m tarindex.Member) bool { return m.Off-m.Header != 512 }); i >= 0 && !v.opts.Legacy {
		intact = true
		v.reason("%s: has an extended tar header, which no list covers", v.p.archive.Members()[i].Name)
	}
	if len(v.p.archive.Notes()) > 0 && !v.opts.Legacy {
		intact = true
		v.reason("%s", v.p.archive.Notes()[0])
	}
	switch {
	case damaged:
		r.Verdict = Damaged
	case len(v.p.lists) == 0:
		r.Verdict = Unverifiable
		v.reason("no list of checksums")
	case incomplete:
		r.Verdict = Incomplete
	case intact:
		r.Verdict = Intact
	default:
		r.Verdict = Verified
	}
}
