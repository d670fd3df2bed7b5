// Package release verifies packages against the keys and certificates that
// their user trusts. The result is data; what it leads to is for the caller.
package release

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"strconv"
	"time"

	"imgmaint/formats"
	"imgmaint/formats/open"
	"imgmaint/internal/pgp"
)

const (
	// maxTrustFile bounds a file of trusted certificates in bytes. The bundles
	// that systems carry are about 250 KiB.
	maxTrustFile = 8 << 20
	// maxTrusted bounds the certificates of one file.
	maxTrusted = 4096
)

// ErrRefused: a package is not what was listed or signed, or not signed as it
// had to be.
var ErrRefused = errors.New("refused")

// VerifyOptions say whom to trust and what is asked of a package. Nil trusts
// nobody and asks for nothing but that the package does not contradict
// itself.
type VerifyOptions struct {
	// Keyring has the OpenPGP keys that are trusted.
	Keyring *pgp.Keyring
	// Roots has the X.509 certificates that are.
	Roots *x509.CertPool
	// At is the time of checking; the zero Time is now.
	At time.Time
	// RequireSignature refuses what nobody we trust has signed as a whole.
	RequireSignature bool
	// Progress is called with the bytes done and all.
	Progress func(done, total int64)
}

// A Report is the result of Verify.
type Report struct {
	Package string `json:"package"`
	*open.Verification
	Signed bool `json:"signed"` // whether there is any signature at all
	// Refused tells why the package is not to be used; "" when it may be.
	Refused string `json:"refused,omitempty"`
}

// Verify reads every member of a package once and holds it against lists and
// signatures. The error is for what could not be read; what is wrong with the
// package is in the report: see Report.Err.
func Verify(ctx context.Context, p *open.Appliance, o *VerifyOptions) (*Report, error) {
	if o == nil {
		o = &VerifyOptions{}
	}
	at := o.At
	if at.IsZero() {
		at = time.Now()
	}
	v, err := p.Verify(&open.VerifyOptions{
		OpenPGP: checker(o.Keyring, &pgp.Policy{At: o.At}),
		Roots:   o.Roots,
		Time:    at,
		Progress: func(done, total int64) error {
			if o.Progress != nil {
				o.Progress(done, total)
			}
			return ctx.Err()
		},
	})
	if err != nil {
		return nil, err
	}
	r := &Report{Package: p.Path, Verification: v, Signed: len(v.Signatures) > 0}
	r.Refused = r.refuse(o.RequireSignature)
	return r, nil
}

func (r *Report) refuse(require bool) string {
	switch {
	case r.Verdict == open.Damaged && len(r.Reasons) > 0:
		for _, why := range r.Reasons {
			if why != "unsigned" { // true as well, and not what is wrong
				return why
			}
		}
		return r.Reasons[0]
	case r.Verdict == open.Damaged:
		return "damaged"
	case !require || r.Verdict == open.Verified:
		return ""
	case !r.Signed:
		return "a signature is required, and there is none"
	case len(r.Reasons) > 0:
		return "a trusted signature over all of it is required: " + r.Reasons[0]
	}
	return "a trusted signature over all of it is required"
}

// Err is nil unless the package is refused; then it wraps ErrRefused.
func (r *Report) Err() error {
	if r.Refused == "" {
		return nil
	}
	return refusal(r.Refused)
}

type refusal string

func (e refusal) Error() string { return string(e) }
func (e refusal) Unwrap() error { return ErrRefused }

// checker checks OpenPGP signatures with the keys of a keyring.
func checker(keys *pgp.Keyring, policy *pgp.Policy) func(data, message []byte, clear bool) (open.OpenPGPCheck, error) {
	if keys == nil {
		keys = &pgp.Keyring{}
	}
	return func(data, message []byte, clear bool) (open.OpenPGPCheck, error) {
		var res *pgp.Result
		var err error
		if clear {
			res, err = keys.VerifyClearsigned(data, policy)
		} else {
			res, err = keys.Verify(data, bytes.NewReader(message), policy)
		}
		if err != nil {
			return open.OpenPGPCheck{}, err
		}
		c := open.OpenPGPCheck{State: open.SignatureGood, Text: res.Text, Reason: res.Reason}
		if !res.Trusted {
			c.State = open.SignatureUntrusted
		}
		for _, s := range res.Signatures {
			algorithm := s.Algorithm
			if s.Bits > 0 {
				algorithm += " " + strconv.Itoa(s.Bits)
			}
			c.Signers = append(c.Signers, open.Signer{Status: s.Status.String(), Name: s.UserID, KeyID: s.KeyID, Fingerprint: s.Fingerprint,
				Algorithm: algorithm, Hash: s.Hash, Time: s.Time, Expires: s.Expires, Reason: s.Reason})
			if s.Status == pgp.BadSignature && !res.Trusted {
				c.State = open.SignatureBad
			}
		}
		return c, nil
	}
}

// AddRoots adds the certificates of a PEM file to those that are trusted.
// Anything in the file that is neither a certificate nor text is refused: a
// file of keys is not one to trust.
func AddRoots(pool *x509.CertPool, r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, maxTrustFile+1))
	if err != nil {
		return err
	}
	if len(b) > maxTrustFile {
		return formats.Limit("pem", -1, "", "more than %d bytes", maxTrustFile)
	}
	n := 0
	for {
		var block *pem.Block
		block, b = pem.Decode(b)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return formats.Unsupported("pem", -1, "", "a block of type %.100q, not a certificate", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return formats.Corrupt("pem", -1, "certificate", "%v", err)
		}
		if n++; n > maxTrusted {
			return formats.Limit("pem", -1, "", "more than %d certificates", maxTrusted)
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return formats.Unknown("pem", -1, "", "no certificate")
	}
	return nil
}
