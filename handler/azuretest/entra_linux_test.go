package azuretest

// Service Bus and Cosmos DB over TLS, with tokens of Microsoft Entra ID. The handler is made to trust the servers of
// the tests by SSL_CERT_FILE, which Go heeds on Linux alone.

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/servicebus/amqpstub"
)

// identityID is the object id of the app's identity, clientID its client id.
const (
	identityID = "11111111-2222-3333-4444-555555555555"
	clientID   = "66666666-7777-8888-9999-000000000000"
	tenantID   = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
)

// entraToken is a token of the app's identity.
var entraToken = "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(`{"oid":"`+identityID+`"}`)) + ".c2lnbmF0dXJl"

// azure is a rig whose services are reached over TLS, by the identity of the app.
type azure struct {
	*rig
	trusted string // file of certificates
	// Guarded by mu.
	mu      sync.Mutex
	entity  string // description of the queue, as the management endpoint tells it; "" for somebody without the right to see it
	noToken bool
}

func newAzure(t *testing.T, c cosmosfake.Config) *azure {
	t.Helper()
	c.Token = entraToken
	a := &azure{rig: newRigWith(t, c)}
	cosmos := httptest.NewUnstartedServer(a.account)
	cosmos.Config.ErrorLog = log.New(io.Discard, "", 0) // some tests do not trust it
	cosmos.StartTLS()
	t.Cleanup(cosmos.Close)
	a.trusted = filepath.Join(t.TempDir(), "trusted.pem")
	a.trust(cosmos.Certificate().Raw)

	// One port of the namespace serves AMQP and management, as the host name is one.
	management := &listener{addr: a.gate.addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: http.HandlerFunc(a.manage)}
	go func() { _ = server.Serve(management) }()
	t.Cleanup(func() { _ = server.Close() })
	config := &tls.Config{Certificates: cosmos.TLS.Certificates}
	a.gate.setWrap(func(c net.Conn) (net.Conn, bool) {
		secure := &peeked{Conn: tls.Server(c, config)}
		secure.r = bufio.NewReader(secure.Conn)
		if first, err := secure.r.Peek(1); err != nil || first[0] != 'A' { // AMQP begins with its name
			if err == nil {
				management.pass(secure)
			} else {
				_ = c.Close()
			}
			return nil, false
		}
		return secure, true
	})

	tokens := httptest.NewServer(http.HandlerFunc(a.token))
	t.Cleanup(tokens.Close)
	for name, value := range map[string]string{
		"ServiceBusConnection": "", "ServiceBusConnection__fullyQualifiedNamespace": a.gate.addr,
		"COSMOS_ENDPOINT": cosmos.URL, "COSMOS_KEY": "", "AZURE_CLIENT_ID": clientID,
		"IDENTITY_ENDPOINT": tokens.URL, "IDENTITY_HEADER": "header", "SSL_CERT_FILE": a.trusted,
	} {
		a.env[name] = value
	}
	return a
}

// trust adds a certificate to those that the handler trusts.
func (a *azure) trust(certificate []byte) {
	a.tb.Helper()
	f, err := os.OpenFile(a.trusted, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		a.tb.Fatal(err)
	}
}

// token is the endpoint of an app's managed identity.
func (a *azure) token(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.noToken || r.URL.Query().Get("client_id") != clientID {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"statusCode":400,"message":"No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId."}`)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{
		"access_token": entraToken, "token_type": "Bearer", "client_id": clientID, "resource": r.URL.Query().Get("resource"),
		"expires_on": strconv.FormatInt(time.Now().Add(24*time.Hour).Unix(), 10),
	})
}

// manage is the management endpoint of the namespace, as far as the handler asks it.
func (a *azure) manage(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.entity == "":
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `<Error><Code>401</Code><Detail>Manage,EntityRead claims required for this operation.</Detail></Error>`)
	case strings.TrimPrefix(r.URL.Path, "/") == eventsQueue:
		fmt.Fprintf(w, `<entry xmlns="http://www.w3.org/2005/Atom"><title type="text">%s</title><content type="application/xml">`+
			`<QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">%s</QueueDescription></content></entry>`, eventsQueue, a.entity)
	default:
		fmt.Fprint(w, `<feed xmlns="http://www.w3.org/2005/Atom"><title type="text">Publicly Listed Services</title></feed>`)
	}
}

// peeked is a connection whose first bytes were looked at.
type peeked struct {
	net.Conn
	r *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.r.Read(b) }

// listener accepts the connections that are passed to it.
type listener struct {
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) pass(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		_ = c.Close()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr {
	addr, _ := net.ResolveTCPAddr("tcp", l.addr)
	return addr
}

const goodQueue = "<LockDuration>PT5M</LockDuration><RequiresDuplicateDetection>true</RequiresDuplicateDetection>" +
	"<RequiresSession>false</RequiresSession><Status>Active</Status>"

// TestIdentity reaches everything by the app's managed identity, as a deployment without keys does.
func TestIdentity(t *testing.T) {
	t.Parallel()
	for name, entity := range map[string]string{"that may send": "", "that may manage": goodQueue} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t, cosmosfake.Config{})
			a.entity = entity
			h := a.start()
			h.beat(users("u", 10), map[string]any{"ttlSeconds": 600})
			messages := a.waitMessages(10)
			a.waitPath("detected queued", messages...)
			a.newTrigger(h, "ConnectivityWorker", eventsQueue, 0).work(10)
			a.waitPath(whole, messages...)
			h.waitHealth("all is well", func(p health) bool { return p.Status == "ok" })
			for _, token := range a.broker.Tokens() {
				if token.Type == "jwt" && token.Token != entraToken {
					t.Errorf("token %+v", token)
				}
			}
			if strings.Contains(h.output.String(), "c2lnbmF0dXJl") {
				t.Error("the log has a token in it")
			}
		})
	}
}

func TestBadIdentities(t *testing.T) {
	t.Parallel()
	run := func(name string, account cosmosfake.Config, spoil func(*azure) []string, b badSetting, mend func(*azure)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAzure(t, account)
			b.spoil = func(*rig) []string { return spoil(a) }
			if mend != nil {
				b.mend = func(*rig) { mend(a) }
			}
			b.check(t, a.rig)
		})
	}
	const grant = "az role assignment create --role \"Azure Service Bus Data Sender\" --assignee-object-id " + identityID
	run("no role in the namespace", cosmosfake.Config{}, func(a *azure) []string { a.broker.Plan(noSend); return nil }, badSetting{
		part: "queue", want: []string{"may not send", "object id " + identityID, "role Azure Service Bus Data Sender", grant, "queue " + eventsQueue + " of 127.0.0.1"},
	}, func(a *azure) { a.broker.ClearFaults() })
	run("no role in the account", cosmosfake.Config{Denied: true}, func(*azure) []string { return nil }, badSetting{
		part: "eventLog", want: []string{
			"has no role in account 127 (403)", "object id " + identityID, "Cosmos DB Built-in Data Contributor",
			"az cosmosdb sql role assignment create --account-name 127", "--principal-id " + identityID,
		},
	}, func(a *azure) { a.account.SetDenied(false) })
	for part, role := range map[string]string{"queue": "Azure Service Bus Data Sender", "eventLog": "Cosmos DB Built-in Data Contributor"} {
		run("no identity for the "+part, cosmosfake.Config{}, func(a *azure) []string { a.setNoToken(true); return nil }, badSetting{
			part: part, want: []string{"there is no token for the identity with the client id " + clientID, "az functionapp identity show", role, "No User Assigned"},
		}, func(a *azure) { a.setNoToken(false) })
		run("expired secret for the "+part, cosmosfake.Config{}, func(a *azure) []string {
			return []string{"IDENTITY_ENDPOINT=", "AZURE_TENANT_ID=" + tenantID, "AZURE_CLIENT_SECRET=" + clientSecret, "HTTPS_PROXY=" + a.authority()}
		}, badSetting{
			part: part, want: []string{"the secret of the app registration is expired", "client id " + clientID, "az ad app credential reset --id " + clientID, role, "AADSTS7000222"},
		}, nil)
	}
	run("queue that does not exist", cosmosfake.Config{}, func(a *azure) []string { a.broker.DeleteQueue(eventsQueue); return nil }, badSetting{
		part: "queue", want: []string{
			"there is no such queue or topic", "az servicebus queue create --resource-group <resource-group> --namespace-name 127",
			"--name " + eventsQueue + " --enable-duplicate-detection true",
		},
	}, func(a *azure) { a.broker.CreateQueue(eventsQueue, amqpstub.QueueOptions{DuplicateDetection: true}) })
	run("queue without duplicate detection", cosmosfake.Config{}, func(a *azure) []string {
		a.entity = strings.Replace(goodQueue, "<RequiresDuplicateDetection>true", "<RequiresDuplicateDetection>false", 1)
		return nil
	}, badSetting{part: "queue", want: []string{"queue " + eventsQueue, "has no duplicate detection", "az servicebus queue delete", "az servicebus queue create"}, flows: true}, nil)
	run("queue with sessions", cosmosfake.Config{}, func(a *azure) []string {
		a.broker.CreateQueue(eventsQueue, amqpstub.QueueOptions{RequiresSession: true})
		a.entity = strings.Replace(goodQueue, "<RequiresSession>false", "<RequiresSession>true", 1)
		return nil
	}, badSetting{part: "queue", want: []string{"requires sessions", "az servicebus queue delete", "az servicebus queue create"}, flows: true}, nil)
	run("certificate that nobody trusts", cosmosfake.Config{}, func(a *azure) []string {
		return []string{"SSL_CERT_FILE=" + os.DevNull}
	}, badSetting{part: "queue", want: []string{"its certificate is not trusted", "clock"}}, nil)
}

func (a *azure) setNoToken(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.noToken = on
}

// authority is a proxy in whose network login.microsoftonline.com is a server that finds every secret expired.
func (a *azure) authority() (proxy string) {
	a.tb.Helper()
	const host = "login.microsoftonline.com"
	answer := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/discovery/instance"):
			fmt.Fprintf(w, `{"tenant_discovery_endpoint":"https://%s/%s/v2.0/.well-known/openid-configuration","api-version":"1.1",`+
				`"metadata":[{"preferred_network":"%[1]s","preferred_cache":"%[1]s","aliases":["%[1]s"]}]}`, host, tenantID)
		case strings.HasSuffix(r.URL.Path, "/openid-configuration"):
			fmt.Fprintf(w, `{"authorization_endpoint":"https://%[1]s/%[2]s/oauth2/v2.0/authorize","token_endpoint":"https://%[1]s/%[2]s/oauth2/v2.0/token",`+
				`"issuer":"https://%[1]s/%[2]s/v2.0"}`, host, tenantID)
		default:
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":"invalid_client","error_description":"AADSTS7000222: The provided client secret keys for app '%s' are expired.",`+
				`"error_codes":[7000222]}`, clientID)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		a.tb.Fatal(err)
	}
	a.trust(certificate)
	server := httptest.NewUnstartedServer(http.HandlerFunc(answer))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: key}}}
	server.StartTLS()
	a.tb.Cleanup(server.Close)

	front := newGate(a.tb, server.Listener.Addr().String())
	front.setWrap(func(c net.Conn) (net.Conn, bool) {
		p := &peeked{Conn: c, r: bufio.NewReader(c)}
		req, err := http.ReadRequest(p.r)
		if err != nil || req.Method != http.MethodConnect || req.Host != host+":443" {
			_, _ = fmt.Fprint(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
			_ = c.Close()
			return nil, false
		}
		_, _ = fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
		return p, true
	})
	return "http://" + front.addr
}
