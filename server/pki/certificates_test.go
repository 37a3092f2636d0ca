package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"
)

func certificatesOf(cfg setup) Certificates {
	return Certificates{DataDir: cfg.DataDir, NodeDir: nodeDir(cfg), AdminKubeconfig: cfg.AdminKubeconfig, TLSSANs: cfg.TLSSANs}
}

// problems returns the problems that Check finds, by name.
func problems(t *testing.T, c Certificates, now time.Time) map[string][]string {
	t.Helper()
	found, err := c.Check(now)
	require.NoError(t, err)
	out := map[string][]string{}
	for _, one := range found {
		if len(one.Problems) > 0 {
			out[one.Name] = one.Problems
		}
	}
	return out
}

func TestCheckOfGoodOnes(t *testing.T) {
	cfg := testConfig(t)
	issueAll(t, cfg, y2027)
	before := contents(t, cfg.DataDir)
	found, err := certificatesOf(cfg).Check(y2027)
	require.NoError(t, err)
	require.Empty(t, problems(t, certificatesOf(cfg), y2027))
	require.Equal(t, before, contents(t, cfg.DataDir), "who looks changes nothing")
	var names []string
	for _, one := range found {
		names = append(names, one.Name)
		if one.Kind == KindLeaf || one.Kind == KindKubeconfig {
			require.Equal(t, 365, *one.DaysLeft, one.Name)
		}
	}
	require.Equal(t, []string{
		"server-ca", "client-ca", "front-proxy-ca",
		"apiserver", "localhost", "metrics-server", "apiserver-kubelet-client", "front-proxy-client", "admin", "addons",
		"controller-manager", "scheduler", "kubelet", "kubelet-client", "kube-proxy",
		"admin.kubeconfig", "controller-manager.kubeconfig", "scheduler.kubeconfig", "kubelet.kubeconfig", "kube-proxy.kubeconfig",
		"service-account",
	}, names)
}

func TestCheckFindsDamage(t *testing.T) {
	year := leafLifetime + time.Hour
	// Files of another cluster.
	foreign := testConfig(t)
	other := issueAll(t, foreign, y2027)
	for _, test := range []struct {
		name   string
		damage func(c *Credentials, cfg setup) error
		now    time.Time
		want   map[string][]string
	}{
		{"no certificate", func(c *Credentials, _ setup) error { return os.Remove(c.Path("localhost.crt")) }, y2027,
			map[string][]string{"localhost": {"is missing"}}},
		{"no key", func(c *Credentials, _ setup) error { return os.Remove(c.Path("apiserver.key")) }, y2027,
			map[string][]string{"apiserver": {"key is missing"}}},
		{"another's key", func(c *Credentials, _ setup) error {
			return copyFile(other.Path("apiserver.key"), c.Path("apiserver.key"))
		}, y2027,
			map[string][]string{"apiserver": {"key does not fit"}}},
		{"another's pair", func(c *Credentials, _ setup) error {
			return firstError(copyFile(other.Path("metrics-server.crt"), c.Path("metrics-server.crt")),
				copyFile(other.Path("metrics-server.key"), c.Path("metrics-server.key")))
		}, y2027, map[string][]string{"metrics-server": {"is not signed by server-ca"}}},
		{"another's kubeconfig", func(_ *Credentials, cfg setup) error { return copyFile(foreign.AdminKubeconfig, cfg.AdminKubeconfig) }, y2027,
			map[string][]string{"admin.kubeconfig": {"is not signed by client-ca", "does not trust server-ca"}}},
		{"a pair in another's place", func(c *Credentials, _ setup) error {
			return firstError(copyFile(c.Path("localhost.crt"), c.Path("apiserver.crt")), copyFile(c.Path("localhost.key"), c.Path("apiserver.key")))
		}, y2027, map[string][]string{"apiserver": {
			`is for "localhost" [] and not for "kube-apiserver" []`,
			"lacks the names kubernetes, kubernetes.default, kubernetes.default.svc, cluster.example, 192.0.2.7",
		}}},
		{"the authority's key", func(c *Credentials, _ setup) error { return os.Remove(c.Path("client-ca.key")) }, y2027,
			map[string][]string{"client-ca": {"key is missing"}}},
		{"the authority's certificate", func(c *Credentials, _ setup) error { return os.Remove(c.Path("front-proxy-ca.crt")) }, y2027,
			map[string][]string{"front-proxy-ca": {"is missing"}}},
		{"the tokens' key", func(c *Credentials, _ setup) error { return os.Remove(c.Path(tokenKey)) }, y2027,
			map[string][]string{"service-account": {"is missing"}}},
		{"a key for all", func(c *Credentials, _ setup) error { return os.Chmod(c.Path("scheduler.key"), 0o644) }, y2027,
			map[string][]string{"scheduler": {"others may read scheduler.key (mode 0644)"}}},
		{"a kubeconfig that is gone", func(_ *Credentials, cfg setup) error { return os.Remove(cfg.AdminKubeconfig) }, y2027,
			map[string][]string{"admin.kubeconfig": {"is missing"}}},
		{"years in a drawer", func(*Credentials, setup) error { return nil }, y2027.Add(year), expiredAll()},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := testConfig(t)
			c := issueAll(t, cfg, y2027)
			require.NoError(t, test.damage(c, cfg))
			require.Equal(t, test.want, problems(t, certificatesOf(cfg), test.now))
		})
	}
	_, err := Certificates{DataDir: t.TempDir()}.Check(y2027)
	require.ErrorContains(t, err, "there are no certificates in")
}

func expiredAll() map[string][]string {
	all := map[string][]string{}
	for _, l := range append(controlPlaneLeaves(subject{}), nodeLeaves("", nil)...) {
		all[l.name] = []string{"has expired"}
	}
	for _, name := range []string{"admin", "controller-manager", "scheduler", "kubelet", "kube-proxy"} {
		all[name+".kubeconfig"] = []string{"has expired"}
	}
	return all
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestRotate(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	later := y2027.Add(24 * time.Hour)
	certs := certificatesOf(cfg)
	certs.Copies = []string{filepath.Join(t.TempDir(), "copy")}
	before := contents(t, cfg.DataDir)

	_, err := certs.Rotate([]string{"apiserver", "nobody"}, false, later)
	require.ErrorContains(t, err, `no certificate "nobody"`)
	require.Equal(t, before, contents(t, cfg.DataDir))

	names, err := certs.Rotate([]string{"scheduler"}, false, later)
	require.NoError(t, err)
	require.Equal(t, []string{"scheduler"}, names)
	after := contents(t, cfg.DataDir)
	require.NotEqual(t, before[c.Path("scheduler.crt")], after[c.Path("scheduler.crt")])
	after[c.Path("scheduler.crt")] = before[c.Path("scheduler.crt")]
	require.Equal(t, before, after, "the key is kept, and nothing else is touched")

	_, err = certs.Rotate(nil, true, later)
	require.NoError(t, err)
	verifyAll(t, c, cfg, later)
	after = contents(t, cfg.DataDir)
	for base := range leaves(c, cfg) {
		require.NotEqual(t, before[base+".key"], after[base+".key"], base)
		require.Equal(t, later.Add(leafLifetime), readCert(t, base+".crt").NotAfter, base)
	}
	require.Empty(t, problems(t, certs, later))
	copied, err := os.ReadFile(certs.Copies[0])
	require.NoError(t, err)
	require.Equal(t, after[cfg.AdminKubeconfig], string(copied))
	admin, err := clientcmd.LoadFromFile(cfg.AdminKubeconfig)
	require.NoError(t, err)
	require.Equal(t, after[c.Path("admin.crt")], string(adminUser(admin).ClientCertificateData))

	issueAll(t, cfg, later)
	require.Equal(t, after, contents(t, cfg.DataDir), "a server has nothing to add")
}

// TestRotateIsWholeOrNot interrupts a rotation after each file that it writes: the next process
// finishes it.
func TestRotateIsWholeOrNot(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	require.NoError(t, os.Remove(c.Path("admin.crt")))
	before := contents(t, cfg.DataDir)
	_, err := certificatesOf(cfg).Rotate(nil, true, y2027)
	require.ErrorContains(t, err, "renew admin")
	require.Equal(t, before, contents(t, cfg.DataDir), "one that cannot be renewed keeps all from it")
	issueAll(t, cfg, y2027)

	p := rotationPlan(t, cfg, c)
	for n := range p {
		require.NoError(t, slices.Clone(p).write(cfg.DataDir, c.plan(leavesPlan)))
		for _, file := range p[:n] {
			require.NoError(t, os.WriteFile(file.Path, file.Data, file.Mode))
		}
		issueAll(t, cfg, y2027)
		verifyAll(t, c, cfg, y2027)
		require.Empty(t, problems(t, certificatesOf(cfg), y2027))
		for _, file := range p {
			data, err := os.ReadFile(file.Path)
			require.NoError(t, err)
			require.Equal(t, file.Data, data, "%s after %d files", file.Path, n)
		}
		p = rotationPlan(t, cfg, c)
	}
}

func rotationPlan(t *testing.T, cfg setup, c *Credentials) plan {
	var p plan
	for _, l := range certificatesOf(cfg).leaves(c) {
		certPEM, keyPEM, err := c.reissue(l, true, y2027)
		require.NoError(t, err)
		p.add(l.base+".key", keyPEM, 0o600)
		p.add(l.base+".crt", certPEM, 0o644)
	}
	return p
}

// knows is the knowledge of a client: the authorities that it trusts, its own certificate, and a
// token to verify.
type knows struct {
	roots  []byte
	client *x509.Certificate
}

func outsider(t *testing.T, cfg setup) knows {
	admin, err := clientcmd.LoadFromFile(cfg.AdminKubeconfig)
	require.NoError(t, err)
	client, err := parseCertificate(adminUser(admin).ClientCertificateData)
	require.NoError(t, err)
	return knows{admin.Clusters[admin.CurrentContext].CertificateAuthorityData, client}
}

// reaches reports whether who trusts the apiserver, and whether the apiserver trusts who.
func (who knows) reaches(t *testing.T, c *Credentials) (server, client bool) {
	pool := func(bundle []byte) *x509.CertPool {
		p := x509.NewCertPool()
		p.AppendCertsFromPEM(bundle)
		return p
	}
	chain, err := os.ReadFile(c.Path("apiserver.crt"))
	require.NoError(t, err)
	served := CertificatesIn(chain)
	intermediates := x509.NewCertPool()
	for _, cert := range served[1:] {
		intermediates.AddCert(cert)
	}
	_, serverErr := served[0].Verify(x509.VerifyOptions{
		Roots: pool(who.roots), Intermediates: intermediates, CurrentTime: y2027, DNSName: "kubernetes.default.svc",
	})
	trusted, err := os.ReadFile(c.Path(ClientAuthority + bundleSuffix))
	require.NoError(t, err)
	_, clientErr := who.client.Verify(x509.VerifyOptions{
		Roots: pool(trusted), CurrentTime: y2027, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return serverErr == nil, clientErr == nil
}

func tokenKeys(t *testing.T, c *Credentials) []any {
	keys, err := keyutil.PublicKeysFromFile(c.Path(tokenPublicKeys))
	require.NoError(t, err)
	return keys
}

func TestRotateAuthorities(t *testing.T) {
	cfg := testConfig(t)
	first := issueAll(t, cfg, y2027)
	certs := certificatesOf(cfg)
	old := outsider(t, cfg)
	oldToken := tokenKeys(t, first)[0]
	encryption := contents(t, cfg.DataDir)[first.data.EncryptionConfig()]

	_, err := certs.FinishAuthorities()
	require.ErrorContains(t, err, "nothing to finish")
	names, err := certs.RotateAuthorities("", y2027)
	require.NoError(t, err)
	require.Equal(t, []string{"server-ca", "client-ca", "front-proxy-ca", "service-account"}, names)
	require.Empty(t, problems(t, certs, y2027), "until the next start all is as it was")
	for _, verb := range []func() error{
		func() error { _, err := certs.RotateAuthorities("", y2027); return err },
		func() error { _, err := certs.FinishAuthorities(); return err },
		func() error { _, err := certs.Rotate(nil, false, y2027); return err },
	} {
		require.ErrorContains(t, verb(), "waits for the next start")
	}

	second := issueAll(t, cfg, y2027)
	verifyAll(t, second, cfg, y2027)
	require.Empty(t, problems(t, certs, y2027))
	present := outsider(t, cfg)
	for _, who := range []knows{old, present, {second.serverCA.certPEM, present.client}} {
		server, client := who.reaches(t, second)
		require.True(t, server)
		require.True(t, client)
	}
	require.Len(t, tokenKeys(t, second), 2)
	require.True(t, samePublic(tokenKeys(t, second)[1], oldToken), "old tokens go on")
	_, err = certs.RotateAuthorities("", y2027)
	require.ErrorContains(t, err, "still trusted")
	_, err = certs.Rotate(nil, false, y2027)
	require.NoError(t, err)
	server, _ := old.reaches(t, second)
	require.True(t, server, "a renewed one has the old authority's word too")

	finished, err := certs.FinishAuthorities()
	require.NoError(t, err)
	require.Equal(t, names, finished)
	third := issueAll(t, cfg, y2027)
	verifyAll(t, third, cfg, y2027)
	require.Empty(t, problems(t, certs, y2027))
	server, client := old.reaches(t, third)
	require.False(t, server)
	require.False(t, client)
	server, client = present.reaches(t, third)
	require.True(t, server)
	require.True(t, client)
	require.Len(t, tokenKeys(t, third), 1)
	require.False(t, samePublic(tokenKeys(t, third)[0], oldToken))
	require.NoFileExists(t, third.Path(ServerAuthority+crossSuffix))
	require.Equal(t, encryption, contents(t, cfg.DataDir)[third.data.EncryptionConfig()], "Secrets can still be read")
}

// TestAuthoritiesAreWholeOrNot interrupts the start that applies new authorities after each file,
// and likewise the start that retires the old ones: the next start completes the change.
func TestAuthoritiesAreWholeOrNot(t *testing.T) {
	for _, step := range []struct {
		name    string
		prepare func(t *testing.T, cfg setup)
		trusted int
	}{
		{"rotate", func(*testing.T, setup) {}, 2},
		{"finish", func(t *testing.T, cfg setup) {
			_, err := certificatesOf(cfg).RotateAuthorities("", y2027)
			require.NoError(t, err)
			issueAll(t, cfg, y2027)
		}, 1},
	} {
		t.Run(step.name, func(t *testing.T) {
			for n, total := 0, 1; n <= total; n++ {
				cfg := testConfig(t)
				c := issueAll(t, cfg, y2027)
				step.prepare(t, cfg)
				var err error
				if step.trusted == 2 {
					_, err = certificatesOf(cfg).RotateAuthorities("", y2027)
				} else {
					_, err = certificatesOf(cfg).FinishAuthorities()
				}
				require.NoError(t, err)
				p, err := readPlan(c.plan(authoritiesPlan))
				require.NoError(t, err)
				total = len(p)
				for _, file := range p[:n] {
					require.NoError(t, file.apply(cfg.DataDir))
				}
				again := issueAll(t, cfg, y2027)
				verifyAll(t, again, cfg, y2027)
				require.Empty(t, problems(t, certificatesOf(cfg), y2027), "after %d files", n)
				require.Len(t, CertificatesIn(again.clientCA.trusted), step.trusted)
				require.Len(t, tokenKeys(t, again), step.trusted)
				require.NoFileExists(t, c.plan(authoritiesPlan))
			}
		})
	}
}

func TestLostAuthorityCertificateAfterRotation(t *testing.T) {
	cfg := testConfig(t)
	issueAll(t, cfg, y2027)
	_, err := certificatesOf(cfg).RotateAuthorities("", y2027)
	require.NoError(t, err)
	c := issueAll(t, cfg, y2027)
	require.NoError(t, os.Remove(c.Path("server-ca.crt")))
	again := issueAll(t, cfg, y2027)
	require.Equal(t, c.serverCA.certPEM, again.serverCA.certPEM)
	verifyAll(t, c, cfg, y2027)
}

// TestAuthorityThatWasRemoved checks that an authority is no longer trusted after its certificate
// and key were removed or replaced by hand.
func TestAuthorityThatWasRemoved(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	for name, put := range map[string]func(dir, name string){
		"removed":  func(string, string) {},
		"replaced": func(dir, name string) { ownAuthority(t, dir, name, key, func(*x509.Certificate) {}) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			issueAll(t, cfg, y2027)
			_, err := certificatesOf(cfg).RotateAuthorities("", y2027)
			require.NoError(t, err)
			c := issueAll(t, cfg, y2027)
			require.FileExists(t, c.Path(ServerAuthority+crossSuffix))
			old := outsider(t, cfg)
			for _, name := range []string{ServerAuthority, ClientAuthority} {
				require.NoError(t, os.Remove(c.Path(name+".crt")))
				require.NoError(t, os.Remove(c.Path(name+".key")))
				put(c.Path(""), name)
			}
			again := issueAll(t, cfg, y2027)
			require.Len(t, CertificatesIn(again.clientCA.trusted), 1)
			require.NoFileExists(t, c.Path(ServerAuthority+crossSuffix))
			server, client := old.reaches(t, again)
			require.False(t, server)
			require.False(t, client)
			verifyAll(t, again, cfg, y2027)
			require.Empty(t, problems(t, certificatesOf(cfg), y2027))
		})
	}
}

// ownAuthority writes a user's authority of the given template to dir.
func ownAuthority(t *testing.T, dir, name string, key crypto.Signer, change func(*x509.Certificate)) {
	template := authorityTemplate(pkix.Name{CommonName: "Our Company"})
	template.NotBefore, template.NotAfter = y2027.Add(-time.Hour), y2027.Add(10*leafLifetime)
	change(template)
	certPEM, err := sign(template, template, key.Public(), key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name+".crt"), certPEM, 0o600))
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name+".key"), data, 0o600))
}

func TestOwnAuthorities(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	same := func(*x509.Certificate) {}

	cfg := testConfig(t)
	issueAll(t, cfg, y2027)
	dir := t.TempDir()
	ownAuthority(t, dir, "server-ca", rsaKey, same)
	ownAuthority(t, dir, "client-ca", ecKey, same)
	names, err := certificatesOf(cfg).RotateAuthorities(dir, y2027)
	require.NoError(t, err)
	require.Equal(t, []string{"server-ca", "client-ca"}, names)
	c := issueAll(t, cfg, y2027)
	require.Equal(t, "Our Company", c.serverCA.cert.Subject.CommonName)
	for base, ca := range leaves(c, cfg) {
		if ca == c.serverCA || ca == c.clientCA {
			require.Equal(t, ca.cert.Subject.String(), readCert(t, base+".crt").Issuer.String())
		}
	}
	require.Empty(t, problems(t, certificatesOf(cfg), y2027))
	again := contents(t, cfg.DataDir)
	issueAll(t, cfg, y2027.Add(time.Hour))
	require.Equal(t, again, contents(t, cfg.DataDir))
	// Near the authority's expiry, leaves expire with it and are not renewed each minute.
	end := y2027.Add(10*leafLifetime - 24*time.Hour)
	issueAll(t, cfg, end)
	require.Equal(t, c.clientCA.cert.NotAfter, readCert(t, c.Path("admin.crt")).NotAfter)
	again = contents(t, cfg.DataDir)
	issueAll(t, cfg, end)
	require.Equal(t, again, contents(t, cfg.DataDir))

	for want, write := range map[string]func(dir string){
		"has none of": func(string) {},
		"is no authority": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 })
		},
		"lacks keyCertSign": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
		},
		"ends at": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, func(c *x509.Certificate) { c.NotAfter = y2027.Add(leafLifetime / 2) })
		},
		"is not valid before": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, func(c *x509.Certificate) { c.NotBefore = y2027.Add(time.Hour) })
		},
		"does not belong to the key": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, same)
			ownAuthority(t, dir, "other", rsaKey, same)
			require.NoError(t, copyFile(filepath.Join(dir, "other.key"), filepath.Join(dir, "client-ca.key")))
		},
		"would not be accepted: x509: certificate specifies an incompatible key usage": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		},
		"is not authorized to sign for this name": func(dir string) {
			ownAuthority(t, dir, "server-ca", ecKey, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"company.example"} })
		},
		"its curve is P-224": func(dir string) {
			key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
			require.NoError(t, err)
			data, err := keyutil.MarshalPrivateKeyToPEM(key)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, tokenKey), data, 0o600))
		},
		"needs its key": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, same)
			require.NoError(t, os.Remove(filepath.Join(dir, "client-ca.key")))
		},
		"needs its certificate": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, same)
			require.NoError(t, os.Remove(filepath.Join(dir, "client-ca.crt")))
		},
		"not a regular file but a named pipe": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, same)
			path := filepath.Join(dir, "client-ca.crt")
			require.NoError(t, os.Remove(path))
			require.NoError(t, unix.Mkfifo(path, 0o600))
		},
		"client-ca.key: not a regular file but a named pipe": func(dir string) {
			require.NoError(t, unix.Mkfifo(filepath.Join(dir, "client-ca.key"), 0o600))
		},
		"has 2 certificates": func(dir string) {
			ownAuthority(t, dir, "client-ca", ecKey, same)
			path := filepath.Join(dir, "client-ca.crt")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, bytes.Repeat(data, 2), 0o600))
		},
	} {
		t.Run(want, func(t *testing.T) {
			cfg, dir := testConfig(t), t.TempDir()
			issueAll(t, cfg, y2027)
			before := contents(t, cfg.DataDir)
			write(dir)
			_, err := certificatesOf(cfg).RotateAuthorities(dir, y2027)
			require.ErrorContains(t, err, want)
			require.Equal(t, before, contents(t, cfg.DataDir), fmt.Sprint(err))
		})
	}
}

// opensslName returns a name in OpenSSL's encoding: UTF8String, and the common name before the
// organization.
func opensslName(t *testing.T) []byte {
	var relative []asn1.RawValue
	for _, one := range []struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}{{asn1.ObjectIdentifier{2, 5, 4, 3}, "Our CA"}, {asn1.ObjectIdentifier{2, 5, 4, 10}, "Our Company"}} {
		der, err := asn1.Marshal(one)
		require.NoError(t, err)
		relative = append(relative, asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSet, IsCompound: true, Bytes: der})
	}
	der, err := asn1.Marshal(relative)
	require.NoError(t, err)
	return der
}

// TestCrossOfOpenSSLsAuthority checks that a client that knows only the old authority reaches a
// server whose new authority OpenSSL created, and again after the change from that one to the next.
func TestCrossOfOpenSSLsAuthority(t *testing.T) {
	cfg := testConfig(t)
	issueAll(t, cfg, y2027)
	certs := certificatesOf(cfg)
	for range 2 {
		old, dir := outsider(t, cfg), t.TempDir()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		ownAuthority(t, dir, "server-ca", key, func(c *x509.Certificate) { c.RawSubject = opensslName(t) })
		_, err = certs.RotateAuthorities(dir, y2027)
		require.NoError(t, err)
		c := issueAll(t, cfg, y2027)
		server, _ := old.reaches(t, c)
		require.True(t, server)
		_, err = certs.FinishAuthorities()
		require.NoError(t, err)
		issueAll(t, cfg, y2027)
	}
}

func TestAuthorityThatCannotSignTheNext(t *testing.T) {
	cfg, dir := testConfig(t), t.TempDir()
	issueAll(t, cfg, y2027)
	certs := certificatesOf(cfg)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ownAuthority(t, dir, "server-ca", key, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	for _, step := range []func() ([]string, error){
		func() ([]string, error) { return certs.RotateAuthorities(dir, y2027) }, certs.FinishAuthorities,
	} {
		_, err = step()
		require.NoError(t, err)
		issueAll(t, cfg, y2027)
	}
	before := contents(t, cfg.DataDir)
	_, err = certs.RotateAuthorities("", y2027)
	require.ErrorContains(t, err, "allows no authority below it (path length 0)")
	require.Equal(t, before, contents(t, cfg.DataDir))
	expired := y2027.Add(11 * leafLifetime)
	_, err = certs.RotateAuthorities("", expired)
	require.NoError(t, err, "nobody knows by an authority that has ended")
	verifyAll(t, issueAll(t, cfg, expired), cfg, expired)
}
