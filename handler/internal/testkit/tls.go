package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Authority signs the certificates of servers.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// NewAuthority returns an authority that nobody trusts.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &Authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

var trusted struct {
	once sync.Once
	*Authority
	err error
}

// Trusted returns an authority that this process trusts, as an operator would have it: by SSL_CERT_FILE. Go reads that
// file with the first certificate that it checks, so no test may do TLS before.
func Trusted(t testing.TB) *Authority {
	t.Helper()
	trusted.once.Do(func() {
		if trusted.Authority, trusted.err = newAuthority(); trusted.err != nil {
			return
		}
		file := filepath.Join(os.TempDir(), "testkit-"+rand.Text()+".pem")
		if trusted.err = os.WriteFile(file, trusted.pem, 0o600); trusted.err != nil {
			return
		}
		defer os.Remove(file)
		if trusted.err = os.Setenv("SSL_CERT_FILE", file); trusted.err != nil {
			return
		}
		_, trusted.err = x509.SystemCertPool() // reads the file
	})
	if trusted.err != nil {
		t.Fatal(trusted.err)
	}
	return trusted.Authority
}

// Certificate returns the settings of a redis-server that speaks TLS alone, on its usual port, with a certificate made
// out to the given names or addresses.
func (a *Authority) Certificate(t testing.TB, names ...string) []string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{"--tls-auth-clients", "no", "--tls-replication", "yes", "--tls-cluster", "yes"}
	for setting, content := range map[string][]byte{
		"--tls-ca-cert-file": a.pem,
		"--tls-cert-file":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"--tls-key-file":     pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	} {
		file := filepath.Join(dir, setting[2:])
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, setting, file)
	}
	return args
}

// config is how a test itself reaches a server with a certificate of this authority, whatever its names.
func (a *Authority) config(name string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.pem)
	return &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12}
}

// StartTLS is Start for a server that speaks TLS alone, with a certificate made out to the given names.
func StartTLS(t testing.TB, a *Authority, names []string, args ...string) *Redis {
	t.Helper()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	r := &Redis{Addr: addr, TLS: a.config(names[0]), dir: t.TempDir()}
	r.args = append(append(a.Certificate(t, names...), "--port", "0", "--tls-port", port), args...)
	if err := r.Run(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}
