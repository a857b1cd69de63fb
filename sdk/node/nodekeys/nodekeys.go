// Package nodekeys is the keys and certificates by which the gateways and the nodes of one provider know each other, and the key that
// a node signs usage records with.
package nodekeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// CA is the private certificate authority of one provider. It issues the identities by which gateways and nodes know
// each other over mutual TLS. Its key is needed at neither: whoever has it can command every node, so keep its folder on a
// machine of its own.
type CA struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// Identity is what a gateway or a node shows to the other: a certificate with its key, and the authority that it believes. A node's
// certificate serves only, and is of its name alone: a node that is broken into commands no other, and cannot pass for it.
type Identity struct {
	Certificate tls.Certificate
	CA          *x509.Certificate
}

// validity is how long certificates hold. What has to be shut out earlier is shut out by a new authority, or by taking the
// node out of provider.Config.Nodes.
const validity = 10 * 365 * 24 * time.Hour

// Hosts that certificates are of. They are compared, and never looked up: a node's address may change.
const (
	gatewayHost = "gateway.gpupay.internal"
	nodeDomain  = ".node.gpupay.internal"
)

// Files of a CA and of an Identity, as PEM.
const (
	caFile    = "ca.pem"
	caKeyFile = "ca-key.pem"
	certFile  = "cert.pem"
	keyFile   = "key.pem"
)

var names = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName refuses what is no name of a node.
func CheckName(name string) error {
	if !names.MatchString(name) {
		return fmt.Errorf("%q is no name of a node: it has 1 to 63 of a-z, 0-9 and -", name)
	}
	return nil
}

// OpenCA reads the authority in a folder, and makes one, with its folder, where there is none.
func OpenCA(dir string) (*CA, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		ca, err := newCA()
		if err != nil {
			return nil, err
		}
		return ca, writePEM(dir, caFile, caKeyFile, tls.Certificate{Certificate: [][]byte{ca.certificate.Raw}, PrivateKey: ca.key})
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("certificate authority in %s: its certificate is none of an authority", dir)
	}
	return &CA{pair.Leaf, key}, nil
}

// NewCA makes an authority that is in no file.
func newCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &CA{key: key}
	ca.certificate = template("gpupay nodes")
	ca.certificate.IsCA, ca.certificate.BasicConstraintsValid, ca.certificate.MaxPathLenZero = true, true, true
	ca.certificate.KeyUsage = x509.KeyUsageCertSign
	identity, err := ca.sign(ca.certificate, key)
	if err != nil {
		return nil, err
	}
	ca.certificate = identity.Certificate.Leaf
	return ca, nil
}

// template is what all certificates have in common. It holds since a day ago: the clocks of hosts differ.
func template(subject string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // never fails: it ends the program instead
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: subject},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(validity)}
}

// Gateway issues an identity that commands every node of this authority. All gateways can have the same.
func (ca *CA) Gateway() (Identity, error) {
	return ca.issue(gatewayHost, x509.ExtKeyUsageClientAuth)
}

// Node issues the identity of one node: name has 1 to 63 of a-z, 0-9 and -.
func (ca *CA) Node(name string) (Identity, error) {
	if err := CheckName(name); err != nil {
		return Identity{}, err
	}
	return ca.issue(name+nodeDomain, x509.ExtKeyUsageServerAuth)
}

func (ca *CA) issue(host string, usage x509.ExtKeyUsage) (Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Identity{}, err
	}
	certificate := template(host)
	certificate.DNSNames, certificate.KeyUsage, certificate.ExtKeyUsage = []string{host}, x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{usage}
	return ca.sign(certificate, key)
}

func (ca *CA) sign(certificate *x509.Certificate, key crypto.Signer) (Identity, error) {
	raw, err := x509.CreateCertificate(rand.Reader, certificate, ca.certificate, key.Public(), ca.key)
	if err != nil {
		return Identity{}, err
	}
	leaf, err := x509.ParseCertificate(raw)
	return Identity{tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}, ca.certificate}, err
}

// Write puts the identity into a folder, which is made where it is missing, for ReadIdentity. What is there is kept: it
// is an error then.
func (i Identity) Write(dir string) error {
	if err := writePEM(dir, certFile, keyFile, i.Certificate); err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, caFile), "CERTIFICATE", i.CA.Raw, 0o644)
}

// ReadIdentity reads what Identity.Write wrote.
func ReadIdentity(dir string) (Identity, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return Identity{}, fmt.Errorf("identity in %s: %w", dir, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return Identity{}, fmt.Errorf("identity in %s: %w", dir, err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return Identity{}, fmt.Errorf("identity in %s: %s is no PEM file", dir, caFile)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Identity{}, fmt.Errorf("identity in %s: %s: %w", dir, caFile, err)
	}
	return Identity{pair, ca}, nil
}

func writePEM(dir, certificate, key string, pair tls.Certificate) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return err
	}
	if err := writeNew(filepath.Join(dir, key), "PRIVATE KEY", private, 0o600); err != nil {
		return err
	}
	return writeNew(filepath.Join(dir, certificate), "CERTIFICATE", pair.Certificate[0], 0o644)
}

// writeNew writes a file that must not be there: a key that is in use is never replaced.
func writeNew(path, kind string, raw []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: raw}), f.Sync(), f.Close())
}

// CheckGateway refuses an identity that nodes would refuse.
func (i Identity) CheckGateway() error { return i.check(gatewayHost, x509.ExtKeyUsageClientAuth) }

// CheckNode refuses an identity that gateways would refuse of the node of a name.
func (i Identity) CheckNode(name string) error {
	return i.check(name+nodeDomain, x509.ExtKeyUsageServerAuth)
}

// check refuses an identity that the other side would refuse.
func (i Identity) check(host string, usage x509.ExtKeyUsage) error {
	if i.Certificate.Leaf == nil || i.CA == nil {
		return errors.New("it has no identity: make the files with `gpupay node --issue`, or with nodekeys.Issue")
	}
	_, err := i.Certificate.Leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: i.roots(), KeyUsages: []x509.ExtKeyUsage{usage}})
	if err != nil {
		return fmt.Errorf("its identity does not hold: %w", err)
	}
	return nil
}

func (i Identity) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(i.CA)
	return roots
}

// ServeTLS is the TLS of a node: only gateways of its own authority get a word in.
func (i Identity) ServeTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.Certificate},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.roots()}
}

// DialTLS is the TLS of a gateway to the node of a name, at whatever address.
func (i Identity) DialTLS(name string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{i.Certificate}, RootCAs: i.roots(), ServerName: name + nodeDomain}
}

// FromGateway reports that a request came from a gateway of this node's authority.
func (i Identity) FromGateway(r *http.Request) bool {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	for _, chain := range r.TLS.VerifiedChains {
		if chain[len(chain)-1].Equal(i.CA) && chain[0].VerifyHostname(gatewayHost) == nil {
			return true
		}
	}
	return false
}
