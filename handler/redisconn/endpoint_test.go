package redisconn

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
)

const secret = "s3cret"

// TestBadEndpoints: whatever is wrong with the endpoint, health tells the setting and the cure, and no secret.
func TestBadEndpoints(t *testing.T) {
	t.Parallel()
	url := func(url string) func(*testing.T) Endpoint {
		return func(*testing.T) Endpoint { return Endpoint{URL: url} }
	}
	protected := func(t *testing.T, url string) Endpoint {
		return Endpoint{URL: fmt.Sprintf(url, testkit.Start(t, "--requirepass", secret).Addr)}
	}
	for name, c := range map[string]struct {
		endpoint func(*testing.T) Endpoint
		want     []string
	}{
		"nothing set":       {url(""), []string{"set REDIS_URL=", "REDIS_HOST"}},
		"no colon":          {url("redis//:" + secret + "@localhost"), []string{"REDIS_URL cannot be read", "redis://user:password@host:6379"}},
		"another scheme":    {url("http://:" + secret + "@localhost"), []string{"REDIS_URL cannot be read"}},
		"no scheme":         {url("localhost:6379"), []string{"REDIS_URL cannot be read"}},
		"a port in letters": {url("redis://:" + secret + "@localhost:port"), []string{"REDIS_URL cannot be read"}},
		"a bad escape":      {url("redis://:" + secret + "@%zz"), []string{"REDIS_URL cannot be read"}},
		"unknown host":      {url("redis://:" + secret + "@no-such-host.invalid"), []string{"REDIS_URL names a host that cannot be found"}},
		"port closed":       {url("redis://:" + secret + "@127.0.0.1:1"), []string{"nothing listens", "REDIS_URL"}},
		"wrong password": {
			func(t *testing.T) Endpoint { return protected(t, "redis://:no-"+secret+"@%s") },
			[]string{"redis refuses the user or password in REDIS_URL", "percent-encode"},
		},
		"unknown user": {
			func(t *testing.T) Endpoint { return protected(t, "redis://nobody:"+secret+"@%s") },
			[]string{"redis refuses the user or password in REDIS_URL"},
		},
		"no password": {
			func(t *testing.T) Endpoint { return protected(t, "redis://%s") },
			[]string{"redis wants a password", "REDIS_URL has none", "redis://:password@host"},
		},
		"a password in the user's place": {
			func(t *testing.T) Endpoint { return protected(t, "redis://"+secret+"@%s") },
			[]string{"redis wants a password", "redis://:password@host"},
		},
		"a read-only replica": {func(t *testing.T) Endpoint {
			host, port, _ := net.SplitHostPort(testkit.Start(t).Addr)
			return Endpoint{URL: testkit.Start(t, "--replicaof", host+" "+port).URL()}
		}, []string{"REDIS_URL names a read-only replica", "name the primary"}},
		"a database that is not there": {
			func(t *testing.T) Endpoint { return Endpoint{URL: "redis://" + testkit.Start(t).Addr + "/99"} },
			[]string{"REDIS_URL names a database that this Redis does not have"},
		},
		"an old Redis": {
			func(t *testing.T) Endpoint { return Endpoint{URL: "redis://" + oldRedis(t)} },
			[]string{"the Redis at REDIS_URL has version 5.0.0", "6.2 or newer"},
		},
		"a user who may not run scripts": {func(t *testing.T) Endpoint {
			server := testkit.Start(t)
			if err := rawClient(t, server).Do(t.Context(), "acl", "setuser", "app", "on", ">"+secret, "~*", "&*", "+@all", "-@scripting").Err(); err != nil {
				t.Fatal(err)
			}
			return Endpoint{URL: "redis://app:" + secret + "@" + server.Addr}
		}, []string{"the app's user in Redis lacks a permission", "ACL SETUSER"}},
		"a server that is silent": {func(t *testing.T) Endpoint {
			g := newGate(t, "")
			t.Cleanup(func() { close(g.open) })
			return Endpoint{URL: "redis://:" + secret + "@" + g.listener.Addr().String()}
		}, []string{"redis at REDIS_URL does not answer in time", "firewall"}},
		"a server that reads its data": {
			func(t *testing.T) Endpoint { return Endpoint{URL: loadingRedis(t).URL()} },
			[]string{"redis is reading its data from disk"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			expectCure(t, c.endpoint(t), c.want...)
		})
	}
}

// expectCure checks what health says of an endpoint.
func expectCure(t *testing.T, e Endpoint, want ...string) {
	t.Helper()
	client := NewClient(e, "test", nil)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // as the health check has
	defer cancel()
	err := newCountStore(client, 1).ping(ctx)
	if fault.KindOf(err) != fault.Unavailable {
		t.Fatal(err)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %q", part, err)
		}
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("a secret in %q", err)
	}
	t.Log(err)
}

// oldRedis is a server that says it is of version 5. A real one of that age cannot be had.
func oldRedis(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	const info = "# Server\r\nredis_version:5.0.0\r\n# Replication\r\nrole:master\r\n"
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for in := bufio.NewReader(conn); ; {
					args, err := readCommand(in)
					if err != nil {
						return
					}
					switch strings.ToLower(args[0]) {
					case "info":
						fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(info), info)
					case "client":
						fmt.Fprint(conn, "+OK\r\n")
					default:
						fmt.Fprint(conn, "-ERR unknown command\r\n")
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func readCommand(in *bufio.Reader) (args []string, err error) {
	number := func(kind byte) int {
		line, readErr := in.ReadString('\n')
		if readErr != nil || line[0] != kind {
			err = fmt.Errorf("read %q: %v", line, readErr)
			return 0
		}
		n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
		return n
	}
	for range number('*') {
		arg := make([]byte, number('$')+2)
		if _, readErr := io.ReadFull(in, arg); err == nil {
			err = readErr
		}
		args = append(args, string(arg[:len(arg)-2]))
	}
	if err == nil && len(args) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return args, err
}

// loadingRedis is a server that has begun to read its data and takes its time.
func loadingRedis(t *testing.T) *testkit.Redis {
	t.Helper()
	server := testkit.Start(t, "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
	raw := rawClient(t, server)
	for i := range 1000 {
		if err := raw.Set(t.Context(), fmt.Sprint("key", i), strings.Repeat("x", 500), 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	return server
}

func TestEndpointByHost(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"name.westeurope.redis.azure.net":       "name.westeurope.redis.azure.net:10000",
		"name.redis.cache.windows.net:6380":     "name.redis.cache.windows.net:6380",
		"name.westeurope.redis.azure.net:10000": "name.westeurope.redis.azure.net:10000",
	} {
		opt, err := Endpoint{Host: host, AccessKey: secret}.options()
		if err != nil || opt.Addr != want || opt.Password != secret || opt.TLSConfig == nil || opt.TLSConfig.ServerName != strings.Split(want, ":")[0] {
			t.Errorf("%s: %+v, %v", host, opt, err)
		}
	}
}
