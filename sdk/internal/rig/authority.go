package rig

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"

	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// Authority is a CA of nodes and gateways with the pair that it signs by.
type Authority struct {
	*nodekeys.CA
	Pair tls.Certificate
}

// NewAuthority makes one.
func NewAuthority() Authority {
	dir, err := os.MkdirTemp("", "gpupay-ca-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ca, err := nodekeys.OpenCA(dir)
	if err != nil {
		panic(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		panic(err)
	}
	return Authority{ca, pair}
}

// Issue signs what the authority gives to nobody.
func (a Authority) Issue(host string, usage x509.ExtKeyUsage) (nodekeys.Identity, error) {
	identity, err := a.Gateway()
	if err != nil {
		return identity, err
	}
	leaf := *identity.Certificate.Leaf
	leaf.DNSNames, leaf.ExtKeyUsage = []string{host}, []x509.ExtKeyUsage{usage}
	raw, err := x509.CreateCertificate(rand.Reader, &leaf, a.Pair.Leaf, leaf.PublicKey, a.Pair.PrivateKey)
	if err != nil {
		return identity, err
	}
	identity.Certificate.Certificate = [][]byte{raw}
	identity.Certificate.Leaf, err = x509.ParseCertificate(raw)
	return identity, err
}
