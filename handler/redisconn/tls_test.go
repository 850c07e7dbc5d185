package redisconn

import (
	"fmt"
	"net"
	"testing"

	"userconnectivity/handler/internal/testkit"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	server := testkit.StartTLS(t, testkit.Trusted(t), []string{"localhost"}, "--requirepass", secret)
	_, port, _ := net.SplitHostPort(server.Addr)
	for name, e := range map[string]Endpoint{
		"by URL":                 {URL: fmt.Sprintf("rediss://:%s@localhost:%s", secret, port)},
		"by host and access key": {Host: "localhost:" + port, AccessKey: secret},
	} {
		client := NewClient(e, "test", nil)
		defer client.Close()
		store := newCountStore(client, 1)
		defer store.close()
		if _, err := store.add(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, n, _ := client.Server(); n != 1 {
			t.Errorf("%s: %d connections", name, n)
		}
	}
}

func TestBadTLSEndpoints(t *testing.T) {
	t.Parallel()
	known := testkit.Trusted(t)
	portOf := func(server *testkit.Redis) string {
		_, port, _ := net.SplitHostPort(server.Addr)
		return port
	}
	for name, c := range map[string]struct {
		endpoint func(*testing.T) Endpoint
		want     []string
	}{
		"plain text to a TLS port": {func(t *testing.T) Endpoint {
			return Endpoint{URL: "redis://:" + secret + "@localhost:" + portOf(testkit.StartTLS(t, known, []string{"localhost"}))}
		}, []string{"REDIS_URL", "a TLS port needs rediss://"}},
		"TLS to a plain port": {func(t *testing.T) Endpoint {
			return Endpoint{URL: "rediss://:" + secret + "@localhost:" + portOf(testkit.Start(t))}
		}, []string{"REDIS_URL asks for TLS", "use redis:// or the TLS port"}},
		"a host with a plain port": {func(t *testing.T) Endpoint {
			return Endpoint{Host: "localhost:" + portOf(testkit.Start(t)), AccessKey: secret}
		}, []string{"REDIS_HOST asks for TLS"}},
		"a certificate of another name": {func(t *testing.T) Endpoint {
			return Endpoint{URL: "rediss://:" + secret + "@localhost:" + portOf(testkit.StartTLS(t, known, []string{"redis.example"}))}
		}, []string{"TLS certificate at REDIS_URL was refused", "made out to the name", "redis.example"}},
		"a certificate of an unknown authority": {func(t *testing.T) Endpoint {
			return Endpoint{URL: "rediss://:" + secret + "@localhost:" + portOf(testkit.StartTLS(t, testkit.NewAuthority(t), []string{"localhost"}))}
		}, []string{"TLS certificate at REDIS_URL was refused", "SSL_CERT_FILE"}},
		"a wrong access key": {func(t *testing.T) Endpoint {
			server := testkit.StartTLS(t, known, []string{"localhost"}, "--requirepass", "another")
			return Endpoint{Host: "localhost:" + portOf(server), AccessKey: secret}
		}, []string{"redis refuses REDIS_ACCESS_KEY", "copy the key anew"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expectCure(t, c.endpoint(t), c.want...)
		})
	}
}
