package servicebus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"userconnectivity/handler/queue"
	"userconnectivity/handler/servicebus/amqpstub"
)

type tokenOptions = policy.TokenRequestOptions

// host is the namespace of the tests with TLS: the certificate of package httptest is for example.com.
const host = "example.com"

// tlsFront puts TLS in front of a broker, as Service Bus has it.
func tlsFront(t *testing.T, b *amqpstub.Broker) (address string, roots *x509.CertPool) {
	t.Helper()
	source := httptest.NewTLSServer(nil)
	roots = x509.NewCertPool()
	roots.AddCert(source.Certificate())
	config := &tls.Config{Certificates: source.TLS.Certificates}
	source.Close()

	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", b.Addr())
			if err != nil {
				front.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{front, back}, {back, front}} {
				all.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					front.Close()
					back.Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return l.Addr().String(), roots
}

// entra returns a sender with a credential, over TLS.
func entra(t *testing.T, b *amqpstub.Broker, cred azcore.TokenCredential) *Sender {
	t.Helper()
	address, roots := tlsFront(t, b)
	s := open(t, Config{Namespace: host, Credential: func() (azcore.TokenCredential, error) { return cred, nil }, KeepWarm: -1})
	s.dialAddress = address
	s.tls.RootCAs = roots
	return s
}

// tokens is a credential of one managed identity.
type tokens struct{ oid string }

func (c tokens) jwt() string {
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{"aud":"https://servicebus.azure.net","oid":"` + c.oid + `"}`))
	return "eyJhbGciOiJub25lIn0." + payload + ".c2lnbmF0dXJl"
}

func (c tokens) GetToken(_ context.Context, o tokenOptions) (azcore.AccessToken, error) {
	if len(o.Scopes) != 1 || !strings.HasPrefix(o.Scopes[0], "https://servicebus.azure.net/") {
		return azcore.AccessToken{}, fmt.Errorf("asked for %v", o.Scopes)
	}
	return azcore.AccessToken{Token: c.jwt(), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// failing is a credential without a token.
type failing struct{ err error }

func (c failing) GetToken(context.Context, tokenOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{}, c.err
}

func TestEntra(t *testing.T) {
	t.Parallel()
	b := amqpstub.Start(t)
	b.CreateQueue(events, amqpstub.QueueOptions{})
	cred := tokens{"11111111-2222-3333-4444-555555555555"}
	s := entra(t, b, cred)
	msgs := messages("m", 3)
	if err := s.Send(t.Context(), events, msgs); err != nil {
		t.Fatal(err)
	}
	must(t, b, events, msgs)
	for _, token := range b.Tokens() {
		if token.Type != "jwt" || token.Token != cred.jwt() || !strings.HasPrefix(token.Audience, "amqps://"+host+"/"+events) {
			t.Errorf("put token %+v", token)
		}
	}
}

func TestCredentialIsMadeLazilyAndAgain(t *testing.T) {
	t.Parallel()
	b := amqpstub.Start(t)
	b.CreateQueue(events, amqpstub.QueueOptions{})
	address, roots := tlsFront(t, b)
	calls := 0
	s := open(t, Config{Namespace: host, KeepWarm: -1, Credential: func() (azcore.TokenCredential, error) {
		if calls++; calls == 1 {
			return nil, errors.New("no identity yet")
		}
		return tokens{"x"}, nil
	}})
	s.dialAddress, s.tls.RootCAs = address, roots
	if calls != 0 {
		t.Fatal("New made the credential")
	}
	if err := s.Send(t.Context(), events, messages("m", 1)); err == nil || !strings.Contains(err.Error(), "no identity yet") {
		t.Fatalf("%v, want the error of the credential", err)
	}
	for range 3 {
		if err := s.Send(t.Context(), events, messages("m", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 2 {
		t.Errorf("the credential was made %d times, want 2", calls)
	}
}

// nameserver answers every question with "no such name".
func nameserver(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			buf[2] |= 0x80          // an answer
			buf[3] = 0x80 | 3       // NXDOMAIN
			buf[10], buf[11] = 0, 0 // nothing additional
			end := 12               // the question: labels, type, class
			for end < n && buf[end] != 0 {
				end += int(buf[end]) + 1
			}
			_, _ = conn.WriteTo(buf[:min(n, end+5)], from)
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// Every error names the resource, says what is wrong and gives the command that mends it.
func TestErrorsSayHowToMendThem(t *testing.T) {
	t.Parallel()
	const oid = "11111111-2222-3333-4444-555555555555"
	attach := func(condition, description string) amqpstub.Fault {
		return amqpstub.Fault{On: amqpstub.OnAttach, Queue: events, Kind: amqpstub.Reject, Condition: condition, Description: description, Times: amqpstub.Forever}
	}
	noSend := attach("amqp:unauthorized-access", "Unauthorized access. 'Send' claim(s) are required to perform this operation. Resource: 'sb://example.servicebus.windows.net/connectivity-events'.")
	withKey := func(_ *testing.T, b *amqpstub.Broker, s *Sender) *Sender { return s }
	for name, tc := range map[string]struct {
		faults []amqpstub.Fault
		setup  func(*testing.T, *amqpstub.Broker, *Sender) *Sender
		queue  string
		want   []string
	}{
		"missing queue": {queue: "typo", want: []string{"queue typo", "no such queue or topic", "Config.json"}},
		"missing queue in Azure": {
			queue: "typo",
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender { return entra(t, b, tokens{oid}) },
			want: []string{
				"queue typo of " + host, "no such queue or topic",
				"az servicebus queue create --resource-group <resource-group> --namespace-name example --name typo --enable-duplicate-detection true",
			},
		},
		"wrong key": {
			setup: func(t *testing.T, b *amqpstub.Broker, s *Sender) *Sender {
				b.RequireKey(amqpstub.KeyName, "another key")
				return s
			},
			want: []string{
				"the key of the authorization rule " + amqpstub.KeyName + " is wrong", "InvalidSignature",
				"az servicebus namespace authorization-rule keys list", "--name " + amqpstub.KeyName,
			},
		},
		"right key": {
			setup: func(t *testing.T, b *amqpstub.Broker, s *Sender) *Sender {
				b.RequireKey(amqpstub.KeyName, amqpstub.Key)
				return s
			},
		},
		"expired token": {
			faults: []amqpstub.Fault{{On: amqpstub.OnToken, Kind: amqpstub.Reject, Description: "ExpiredToken: The token is expired. Expiration time: '2026-01-01 00:00:00Z'.", Times: amqpstub.Forever}},
			setup:  withKey, want: []string{"the token is expired", "clock"},
		},
		"rule without Send": {
			faults: []amqpstub.Fault{noSend}, setup: withKey,
			want: []string{amqpstub.KeyName + " may not send", "az servicebus namespace authorization-rule update", "--rights Send"},
		},
		"missing role": {
			faults: []amqpstub.Fault{noSend},
			setup:  func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender { return entra(t, b, tokens{oid}) },
			want: []string{
				"queue " + events + " of " + host, "object id " + oid, "Azure Service Bus Data Sender",
				"az role assignment create --role \"Azure Service Bus Data Sender\" --assignee-object-id " + oid, "--name example --query id",
			},
		},
		"expired secret": {
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender {
				return entra(t, b, failing{errors.New("ClientSecretCredential authentication failed\nAADSTS7000222: The provided client secret keys for app 'x' are expired.")})
			},
			want: []string{"the secret of the app registration is expired", "az ad app credential reset"},
		},
		"no identity": {
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender {
				return entra(t, b, failing{errors.New("ManagedIdentityCredential: no managed identity found")})
			},
			want: []string{"no token", "az functionapp identity show", "no managed identity found"},
		},
		"sessions": {
			setup: func(_ *testing.T, b *amqpstub.Broker, s *Sender) *Sender {
				b.CreateQueue(events, amqpstub.QueueOptions{RequiresSession: true})
				return s
			},
			want: []string{"requires sessions", "az servicebus queue delete", "az servicebus queue create"},
		},
		"disabled": {
			faults: []amqpstub.Fault{attach("com.microsoft:entity-disabled", "Messaging entity is currently disabled.")}, setup: withKey,
			want: []string{"disabled", "az servicebus queue update", "--status Active"},
		},
		"full": {
			faults: []amqpstub.Fault{{On: amqpstub.OnSend, Kind: amqpstub.Reject, Condition: "amqp:resource-limit-exceeded", Description: "The maximum entity size has been reached.", Times: amqpstub.Forever}},
			setup:  withKey, want: []string{"full", "maximum entity size", "az servicebus queue show"},
		},
		"broken again and again": {
			faults: []amqpstub.Fault{{On: amqpstub.OnSend, Kind: amqpstub.Disconnect, Times: amqpstub.Forever}},
			setup:  withKey, want: []string{"connection", "az servicebus namespace show"},
		},
		"wrong endpoint": {
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender {
				s := open(t, Config{ConnectionString: "Endpoint=sb://contosso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=" + amqpstub.Key})
				s.dialer.Resolver = nameserver(t)
				return s
			},
			want: []string{"contosso.servicebus.windows.net", "no such host", "az servicebus namespace list"},
		},
		"nothing listens": {
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender {
				s := open(t, Config{ConnectionString: "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=" + amqpstub.Key})
				s.dialAddress = "127.0.0.1:1"
				return s
			},
			want: []string{"cannot be reached", "contoso.servicebus.windows.net:5671", "az servicebus namespace network-rule-set show", "--namespace-name contoso"},
		},
		"foreign certificate": {
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender {
				s := entra(t, b, tokens{oid})
				s.tls.RootCAs = x509.NewCertPool()
				return s
			},
			want: []string{"certificate is not trusted", "proxy"},
		},
		"other entity": {
			setup: func(t *testing.T, b *amqpstub.Broker, _ *Sender) *Sender {
				return open(t, Config{ConnectionString: b.ConnectionString() + "EntityPath=other"})
			},
			want: []string{"for other alone", "EntityPath"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := start(t, nil)
			b.Plan(tc.faults...)
			if tc.setup != nil {
				s = tc.setup(t, b, s)
			}
			name := tc.queue
			if name == "" {
				name = events
			}
			err := s.Send(t.Context(), name, []queue.Message{{ID: "m"}})
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("sent")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q\ndoes not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), amqpstub.Key) || strings.Contains(err.Error(), "c2lnbmF0dXJl") {
				t.Errorf("%q\ncontains a secret", err)
			}
			t.Log(err)
		})
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	b.Plan(amqpstub.Fault{On: amqpstub.OnToken, Kind: amqpstub.Reject, Description: "InvalidSignature: I got " + amqpstub.Key, Times: amqpstub.Forever})
	err := s.Ping(t.Context(), events)
	if err == nil || strings.Contains(err.Error(), amqpstub.Key) || !strings.Contains(err.Error(), "***") {
		t.Errorf("%v, want the key replaced", err)
	}
}

func TestNewChecksTheConfiguration(t *testing.T) {
	t.Parallel()
	cred := func() (azcore.TokenCredential, error) { return tokens{}, nil }
	const secret = "c2VjcmV0"
	for name, tc := range map[string]struct {
		cfg  Config
		want string // "" for a good one
	}{
		"nothing":       {Config{}, "neither"},
		"both":          {Config{ConnectionString: "Endpoint=sb://x/", Namespace: "x.y", Credential: cred}, "not both"},
		"no credential": {Config{Namespace: "contoso.servicebus.windows.net"}, "needs a credential"},
		"namespace":     {Config{Namespace: "contoso.servicebus.windows.net", Credential: cred}, ""},
		"short name":    {Config{Namespace: "contoso", Credential: cred}, "fully qualified"},
		"url":           {Config{Namespace: "sb://contoso.servicebus.windows.net/", Credential: cred}, "fully qualified"},
		"no endpoint":   {Config{ConnectionString: "SharedAccessKeyName=n;SharedAccessKey=" + secret}, "no Endpoint"},
		"https":         {Config{ConnectionString: "Endpoint=https://x/;SharedAccessKeyName=n;SharedAccessKey=" + secret}, "sb://"},
		"no key":        {Config{ConnectionString: "Endpoint=sb://x/;SharedAccessKeyName=n"}, "SharedAccessKey"},
		"no name":       {Config{ConnectionString: "Endpoint=sb://x/;SharedAccessKey=" + secret}, "SharedAccessKeyName"},
		"no value":      {Config{ConnectionString: "Endpoint=sb://x/;" + secret}, "name=value"},
		"no bool":       {Config{ConnectionString: "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=" + secret + ";UseDevelopmentEmulator=" + secret}, "UseDevelopmentEmulator"},
		"key":           {Config{ConnectionString: "endpoint=sb://contoso.servicebus.windows.net/;sharedaccesskeyname=n;sharedaccesskey=" + secret + "="}, ""},
		"signature":     {Config{ConnectionString: "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature sr=x&sig=" + secret}, ""},
		"emulator":      {Config{ConnectionString: "Endpoint=sb://localhost;SharedAccessKeyName=n;SharedAccessKey=" + secret + ";UseDevelopmentEmulator=true;"}, ""},
	} {
		s, err := New(tc.cfg)
		if err == nil {
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %q contains the secret", name, err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	const keys = ";SharedAccessKeyName=n;SharedAccessKey=k=="
	for s, want := range map[string]struct{ address, hostname, namespace string }{
		"Endpoint=sb://contoso.servicebus.windows.net/" + keys:                  {"contoso.servicebus.windows.net:5671", "contoso.servicebus.windows.net", "contoso"},
		"Endpoint=sb://localhost" + keys + ";UseDevelopmentEmulator=true":       {"localhost:5672", "localhost", "localhost"},
		"Endpoint=sb://emu:5673/;UseDevelopmentEmulator=true" + keys:            {"emu:5673", "emu", "emu"},
		"Endpoint=sb://contoso.servicebus.windows.net:5671;EntityPath=q" + keys: {"contoso.servicebus.windows.net:5671", "contoso.servicebus.windows.net", "contoso"},
	} {
		e, err := parseConnectionString(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if e.address() != want.address || e.hostname() != want.hostname || e.namespace() != want.namespace {
			t.Errorf("%s: %s, %s, %s, want %v", s, e.address(), e.hostname(), e.namespace(), want)
		}
	}
}
