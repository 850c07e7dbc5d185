package servicebus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
)

// management is the Atom endpoint of a namespace, as far as Check asks it.
func management(t *testing.T, answers map[string]string) (*httptest.Server, *http.Client) {
	t.Helper()
	const entry = `<entry xmlns="http://www.w3.org/2005/Atom"><title type="text">x</title><content type="application/xml">%s</content></entry>`
	const feed = `<feed xmlns="http://www.w3.org/2005/Atom"><title type="text">Publicly Listed Services</title></feed>`
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth := r.Header.Get("Authorization")
		if !strings.HasPrefix(auth, "SharedAccessSignature sr=") && auth != (tokens{"x"}).jwt() {
			t.Errorf("authorization %q", auth)
		}
		answer, ok := answers[strings.TrimPrefix(r.URL.Path, "/")]
		switch {
		case !ok:
			fmt.Fprint(w, feed)
		case strings.HasPrefix(answer, "<"):
			fmt.Fprintf(w, entry, answer)
		default:
			w.WriteHeader(map[string]int{"401": 401, "403": 403, "500": 500}[answer])
			fmt.Fprintf(w, `<Error><Code>%s</Code><Detail>Manage,EntityRead claims required for this operation.</Detail></Error>`, answer)
		}
	}))
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{RootCAs: roots},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return server, &http.Client{Transport: transport}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	description := func(kind string, duplicates, sessions bool, lock, status string) string {
		s := fmt.Sprintf(`<%s xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">`, kind)
		if lock != "" {
			s += "<LockDuration>" + lock + "</LockDuration>"
		}
		s += fmt.Sprintf("<RequiresDuplicateDetection>%t</RequiresDuplicateDetection>", duplicates)
		if kind == "QueueDescription" {
			s += fmt.Sprintf("<RequiresSession>%t</RequiresSession>", sessions)
		}
		return s + fmt.Sprintf("<Status>%s</Status></%s>", status, kind)
	}
	server, client := management(t, map[string]string{
		"good":       description("QueueDescription", true, false, "PT5M", "Active"),
		"duplicates": description("QueueDescription", false, false, "PT5M", "Active"),
		"sessions":   description("QueueDescription", true, true, "PT5M", "Active"),
		"lock":       description("QueueDescription", true, false, "PT1M", "Active"),
		"off":        description("QueueDescription", true, false, "PT5M", "SendDisabled"),
		"all":        description("QueueDescription", false, true, "PT30S", "Disabled"),
		"deliveries": strings.Replace(description("QueueDescription", true, false, "PT5M", "Active"), "<Status>", "<MaxDeliveryCount>10</MaxDeliveryCount><Status>", 1),
		"topic":      description("TopicDescription", true, false, "", "Active"),
		"topic-dup":  description("TopicDescription", false, false, "", "Active"),
		"denied":     "401",
		"forbidden":  "403",
		"broken":     "500",
	})
	const inNamespace = "--resource-group <resource-group> --namespace-name example --name "
	senders := map[string]Config{
		"key":   {ConnectionString: "Endpoint=sb://" + host + "/;SharedAccessKeyName=n;SharedAccessKey=k"},
		"entra": {Namespace: host, Credential: func() (azcore.TokenCredential, error) { return tokens{"x"}, nil }},
	}
	for kind, cfg := range senders {
		s := open(t, cfg)
		s.transport = client
		for name, want := range map[string][]string{
			"good":       nil,
			"duplicates": {"no duplicate detection", "az servicebus queue delete " + inNamespace + "duplicates", "az servicebus queue create " + inNamespace + "duplicates"},
			"sessions":   {"requires sessions", "az servicebus queue delete " + inNamespace + "sessions"},
			"lock":       {"PT1M instead of PT5M", "az servicebus queue update " + inNamespace + "lock --lock-duration PT5M"},
			"off":        {"is SendDisabled", "az servicebus queue update " + inNamespace + "off --status Active"},
			"all":        {"sessions", "duplicate detection", "PT30S", "Disabled"},
			"deliveries": {"up after 10 deliveries", "an outage of 25m0s", "az servicebus queue update " + inNamespace + "deliveries --max-delivery-count 600"},
			"topic":      nil,
			"topic-dup":  {"topic topic-dup of " + host, "no duplicate detection", "az servicebus topic create"},
			"missing":    {"queue missing of " + host, "does not exist", "az servicebus queue create " + inNamespace + "missing"},
			"denied":     nil,
			"forbidden":  nil,
			"broken":     {"could not be checked", "500"},
		} {
			got := strings.Join(s.Check(t.Context(), name), "\n")
			if len(want) == 0 && got != "" {
				t.Errorf("%s: %s: %q, want no warning", kind, name, got)
			}
			for _, w := range want {
				if !strings.Contains(got, w) {
					t.Errorf("%s: %s: %q does not say %q", kind, name, got, w)
				}
			}
		}
	}

	// Nobody there, and an emulator: nothing to say.
	server.Close()
	s := open(t, senders["key"])
	s.transport = client
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := s.Check(ctx, "good"); got != nil {
		t.Errorf("unreachable: %q", got)
	}
	s = open(t, Config{ConnectionString: "Endpoint=sb://localhost;SharedAccessKeyName=n;SharedAccessKey=k;UseDevelopmentEmulator=true"})
	if got := s.Check(t.Context(), "good"); got != nil {
		t.Errorf("emulator: %q", got)
	}
}

// TestCheckAside: what lies in the queues -rejected and in the dead letters is told, as far as it may be seen.
func TestCheckAside(t *testing.T) {
	t.Parallel()
	counts := func(active, dead int) string {
		return fmt.Sprintf(`<QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">`+
			`<CountDetails xmlns:d="http://schemas.microsoft.com/netservices/2011/06/servicebus"><d:ActiveMessageCount>%d</d:ActiveMessageCount>`+
			`<d:DeadLetterMessageCount>%d</d:DeadLetterMessageCount></CountDetails><CreatedAt>2026-01-01T00:00:00Z</CreatedAt>`+
			`<UpdatedAt>2026-01-01T00:00:00Z</UpdatedAt><AccessedAt>2026-01-01T00:00:00Z</AccessedAt></QueueDescription>`, active, dead)
	}
	_, client := management(t, map[string]string{
		"well": counts(500, 0), "well-rejected": counts(0, 0),
		"full": counts(1, 7), "full-rejected": counts(12, 3),
		"alone": counts(0, 1), "denied": "401", "denied-rejected": "403", "broken": "500",
	})
	s := open(t, Config{ConnectionString: "Endpoint=sb://" + host + "/;SharedAccessKeyName=n;SharedAccessKey=k"})
	s.transport = client
	for _, tt := range []struct {
		queues []string
		want   []string
	}{
		{nil, nil},
		{[]string{"well"}, nil},
		{[]string{"full"}, []string{"12 messages are in the queue full-rejected of " + host, "7 messages are in the dead letters of the queue full of " + host}},
		{[]string{"alone", "missing", "denied", "broken", "well"}, []string{"1 messages are in the dead letters of the queue alone"}},
	} {
		got := s.CheckAside(t.Context(), tt.queues...)
		if len(got) != len(tt.want) {
			t.Errorf("%v: %q", tt.queues, got)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], tt.want[i]) {
				t.Errorf("%v: %q, want %q", tt.queues, got[i], tt.want[i])
			}
		}
	}
}
