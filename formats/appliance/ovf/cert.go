package ovf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"imgmaint/formats"
)

// A Certificate is a parsed .cert (DSP0243 section 5.2): the signature over
// the bytes of the manifest, hex in a line as "SHA256(name.mf)= hex", and the
// signer's X.509 certificate in PEM, with its chain behind it.
type Certificate struct {
	Algorithm string              `json:"algorithm"` // digest that is signed
	File      string              `json:"file"`      // the manifest
	Signature []byte              `json:"-"`
	Chain     []*x509.Certificate `json:"-"`               // the signer's first
	Other     []string            `json:"other,omitempty"` // types of further PEM blocks: time stamps, PKCS7
	Text      bool                `json:"text,omitempty"`  // there is text outside of the blocks
}

const (
	pemBegin = "-----BEGIN "
	pemEnd   = "-----END "
	pemTail  = "-----"
)

// ParseCert parses a .cert. Blocks that are not certificates are counted in
// Other and not looked into. PEM is taken as RFC 7468 has its strict form,
// lines of 64 and one last padding, so that no other text encodes the same.
func ParseCert(b []byte) (*Certificate, error) {
	if len(b) > maxCert {
		return nil, formats.Limit(Name, -1, "certificate", "%d bytes, at most %d", len(b), maxCert)
	}
	lines, err := splitLines(b)
	if err != nil {
		return nil, formats.Corrupt(Name, -1, "certificate", "%v", err)
	}
	c := &Certificate{}
	for i := 0; i < len(lines); i++ {
		line := string(lines[i])
		switch {
		case len(line) > len(pemBegin)+len(pemTail) && line[:len(pemBegin)] == pemBegin && line[len(line)-len(pemTail):] == pemTail:
			kind := line[len(pemBegin) : len(line)-len(pemTail)]
			end := i + 1
			for end < len(lines) && string(lines[end]) != pemEnd+kind+pemTail {
				end++
			}
			if end == len(lines) {
				return nil, formats.Corrupt(Name, -1, "certificate", "line %d: %q without end", i+1, clip(line))
			}
			if err := c.block(kind, lines[i:end+1]); err != nil {
				return nil, lineError("certificate", i, err)
			}
			i = end
		case bytes.Contains(lines[i], []byte("-----")):
			return nil, formats.Corrupt(Name, -1, "certificate", "line %d: %q", i+1, clip(line))
		case c.Signature == nil && bytes.ContainsRune(lines[i], '(') && bytes.ContainsRune(lines[i], '='):
			l, err := parseDigestLine(lines[i])
			if err != nil {
				return nil, lineError("certificate", i, err)
			}
			c.Algorithm, c.File, c.Signature = l.alg, l.file, l.value
		case line != "":
			c.Text = true
		}
	}
	switch {
	case c.Signature == nil:
		return nil, formats.Corrupt(Name, -1, "certificate", "no signature")
	case len(c.Chain) == 0:
		return nil, formats.Corrupt(Name, -1, "certificate", "no certificate")
	}
	return c, nil
}

// block takes a PEM block with its first and last line.
func (c *Certificate) block(kind string, lines [][]byte) error {
	if kind != "CERTIFICATE" {
		if len(c.Other) >= maxCerts {
			return formats.Limit(Name, -1, "", "more than %d blocks", maxCerts)
		}
		c.Other = append(c.Other, clip(kind))
		return nil
	}
	if len(c.Chain) >= maxCerts {
		return formats.Limit(Name, -1, "", "more than %d certificates", maxCerts)
	}
	text := append(bytes.Join(lines, []byte("\n")), '\n')
	p, rest := pem.Decode(text)
	if p == nil || len(rest) > 0 || !bytes.Equal(pem.EncodeToMemory(p), text) {
		return errors.New("not strict PEM")
	}
	x, err := x509.ParseCertificate(p.Bytes)
	if err != nil {
		return err
	}
	c.Chain = append(c.Chain, x)
	return nil
}

// A SignatureState is what is known of a signature.
type SignatureState string

// The states of a signature. Each but the first two is a reason not to trust
// it; where several hold, the one that comes first here is given.
const (
	SigNone          SignatureState = "none"            // there is no .cert
	SigValid         SignatureState = "valid"           // by a key that a given root vouches for
	SigMalformed     SignatureState = "malformed"       // the .cert cannot be read
	SigMismatch      SignatureState = "mismatch"        // not of this manifest
	SigWeak          SignatureState = "weak"            // SHA-1, RSA below 2048 bits
	SigUntrusted     SignatureState = "untrusted"       // no chain to a given root
	SigWrongKeyUsage SignatureState = "wrong-key-usage" // a certificate not for signing code
	SigExpired       SignatureState = "expired"         // or not valid yet
)

// A CertInfo is a certificate in words.
type CertInfo struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"not-before"`
	NotAfter    time.Time `json:"not-after"`
	Key         string    `json:"key"`         // RSA 3072
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate, hex
}

func describe(x *x509.Certificate) CertInfo {
	sum := sha256.Sum256(x.Raw)
	kind, bits := keyOf(x)
	return CertInfo{Subject: x.Subject.String(), Issuer: x.Issuer.String(), Serial: x.SerialNumber.Text(16),
		NotBefore: x.NotBefore.UTC(), NotAfter: x.NotAfter.UTC(), Key: fmt.Sprintf("%s %d", kind, bits), Fingerprint: hex.EncodeToString(sum[:])}
}

func keyOf(x *x509.Certificate) (kind string, bits int) {
	switch k := x.PublicKey.(type) {
	case *rsa.PublicKey:
		return "RSA", k.N.BitLen()
	case *ecdsa.PublicKey:
		return "ECDSA", k.Curve.Params().BitSize
	}
	return x.PublicKeyAlgorithm.String(), 0
}

// A SignatureReport says what a .cert is worth.
type SignatureReport struct {
	State     SignatureState `json:"state"`
	Detail    string         `json:"detail,omitempty"`
	Algorithm string         `json:"algorithm,omitempty"` // digest that is signed
	Signer    *CertInfo      `json:"signer,omitempty"`
	Chain     []CertInfo     `json:"chain,omitempty"`     // as verified, else as in the file
	Unchecked []string       `json:"unchecked,omitempty"` // parts of the file that nothing protects
}

// TrustOptions say whom to trust.
type TrustOptions struct {
	// Roots are the certificates that end a chain; none are trusted when it
	// is nil. A signer's certificate in it is trusted by itself.
	Roots *x509.CertPool
	// Time is the time the certificates must be valid at.
	Time time.Time
}

// VerifySignature checks the signature of a manifest, whose bytes are mf and
// whose name is file.
func VerifySignature(c *Certificate, file string, mf []byte, trust *TrustOptions) *SignatureReport {
	if c == nil {
		return &SignatureReport{State: SigNone}
	}
	if trust == nil {
		trust = &TrustOptions{}
	}
	leaf := c.Chain[0]
	info := describe(leaf)
	r := &SignatureReport{Algorithm: c.Algorithm, Signer: &info}
	for _, x := range c.Chain {
		r.Chain = append(r.Chain, describe(x))
	}
	for _, kind := range c.Other {
		r.Unchecked = append(r.Unchecked, "block "+kind)
	}
	if c.Text {
		r.Unchecked = append(r.Unchecked, "text outside of the blocks")
	}
	set := func(s SignatureState, msg string, args ...any) *SignatureReport {
		r.State, r.Detail = s, fmt.Sprintf(msg, args...)
		return r
	}
	kind, bits := keyOf(leaf)
	switch {
	case c.File != file:
		return set(SigMismatch, "it signs %q", clip(c.File))
	case kind == "RSA" && (bits < 1024 || bits > maxRSABits):
		return set(SigWeak, "RSA key of %d bits; the signature was not checked", bits)
	}
	if err := checkSignature(leaf, algorithms[c.Algorithm], mf, c.Signature); err != nil {
		return set(SigMismatch, "%v", err)
	}
	switch {
	case weakDigest(c.Algorithm):
		return set(SigWeak, "%s proves nothing", c.Algorithm)
	case kind == "RSA" && bits < minRSABits, kind == "ECDSA" && bits < minECBits:
		return set(SigWeak, "%s key of %d bits", kind, bits)
	}
	return c.trust(r, trust, set)
}

var errNoMatch = errors.New("the signature is not of this manifest")

func checkSignature(x *x509.Certificate, h crypto.Hash, msg, sig []byte) error {
	sum := h.New()
	sum.Write(msg)
	digest := sum.Sum(nil)
	switch k := x.PublicKey.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(k, h, digest, sig) != nil {
			return errNoMatch
		}
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, digest, sig) {
			return errNoMatch
		}
	default:
		return fmt.Errorf("keys of type %s cannot sign a manifest", x.PublicKeyAlgorithm)
	}
	return nil
}

// trust looks for a chain from the signer to a root.
func (c *Certificate) trust(r *SignatureReport, t *TrustOptions, set func(SignatureState, string, ...any) *SignatureReport) *SignatureReport {
	leaf := c.Chain[0]
	opts := x509.VerifyOptions{Roots: t.Roots, Intermediates: x509.NewCertPool(), CurrentTime: t.Time,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}
	if opts.Roots == nil {
		opts.Roots = x509.NewCertPool() // nil would be the host's
	}
	for _, x := range c.Chain[1:] {
		opts.Intermediates.AddCert(x)
	}
	chains, err := leaf.Verify(opts)
	if err != nil {
		return c.whyNot(err, opts, set)
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return set(SigWrongKeyUsage, "the key is not for signatures")
	}
	// What the file carries beside the chain must be part of it, or be one
	// that a part of it vouches for: a certificate nobody looked at could be
	// anything.
	known := append([]*x509.Certificate{}, c.Chain...)
	for _, ch := range chains {
		known = append(known, ch...)
	}
next:
	for i, x := range c.Chain[1:] {
		for _, up := range known {
			if x.CheckSignatureFrom(up) == nil && c.above(x) {
				continue next
			}
		}
		return set(SigUntrusted, "certificate %d of the file is not of the signer's chain", i+2)
	}
	r.Chain = nil
	for _, x := range chains[0] {
		r.Chain = append(r.Chain, describe(x))
	}
	r.State = SigValid
	return r
}

// above reports whether x issued another certificate of the file.
func (c *Certificate) above(x *x509.Certificate) bool {
	for _, y := range c.Chain {
		if y != x && y.CheckSignatureFrom(x) == nil {
			return true
		}
	}
	return false
}

// whyNot gives the state for a chain that does not verify.
func (c *Certificate) whyNot(err error, opts x509.VerifyOptions, set func(SignatureState, string, ...any) *SignatureReport) *SignatureReport {
	leaf := c.Chain[0]
	try := func(at time.Time, usage x509.ExtKeyUsage) bool {
		o := opts
		o.CurrentTime, o.KeyUsages = at, []x509.ExtKeyUsage{usage}
		_, err := leaf.Verify(o)
		return err == nil
	}
	for _, at := range []time.Time{opts.CurrentTime, leaf.NotAfter.Add(-time.Second), leaf.NotBefore.Add(time.Second)} {
		switch {
		case at != opts.CurrentTime && try(at, x509.ExtKeyUsageCodeSigning):
			if opts.CurrentTime.Before(leaf.NotBefore) {
				return set(SigExpired, "not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
			}
			return set(SigExpired, "%v", err)
		case try(at, x509.ExtKeyUsageAny):
			return set(SigWrongKeyUsage, "the certificate is not for signing code")
		}
	}
	for _, x := range c.Chain {
		switch x.SignatureAlgorithm {
		case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
			if !bytes.Equal(x.RawIssuer, x.RawSubject) {
				return set(SigWeak, "%s was certified with %s", x.Subject, x.SignatureAlgorithm)
			}
		}
	}
	return set(SigUntrusted, "%v", err)
}

// Sign makes a .cert: the signature over the bytes of a manifest named file,
// and the certificates, the signer's first. The digest is one of SHA256,
// SHA384 and SHA512, or SHA1 for importers that know nothing else. RSA
// signatures, and those of a Go ECDSA key, depend on the arguments alone.
func Sign(file string, mf []byte, algorithm string, key crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	h, ok := algorithms[algorithm]
	if !ok {
		return nil, formats.Unsupported(Name, -1, "certificate", "algorithm %q", algorithm)
	}
	if len(chain) == 0 || len(chain) > maxCerts {
		return nil, fmt.Errorf("%s: %d certificates", Name, len(chain))
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("%s: the key is not that of the first certificate", Name)
	}
	sum := h.New()
	sum.Write(mf)
	random := rand.Reader
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		random = nil // RFC 6979
	}
	sig, err := key.Sign(random, sum.Sum(nil), h)
	if err != nil {
		return nil, fmt.Errorf("%s: signing: %w", Name, err)
	}
	if err := checkSignature(chain[0], h, mf, sig); err != nil {
		return nil, fmt.Errorf("%s: signing: %w", Name, err)
	}
	return AppendCert(file, algorithm, sig, chain)
}

// AppendCert writes a .cert around a signature that was made elsewhere, as by
// openssl dgst -sign.
func AppendCert(file, algorithm string, sig []byte, chain []*x509.Certificate) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s(%s)= %x\n", algorithm, file, sig)
	for _, x := range chain {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: x.Raw}); err != nil {
			return nil, err
		}
	}
	if _, err := ParseCert(b.Bytes()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
