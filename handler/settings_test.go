package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/internal/testkit"
)

const reference = "@Microsoft.KeyVault(SecretUri=https://vault.vault.azure.net/secrets/name/)"

// healthNow asks for health as a monitor does.
func (s *served) healthNow() (code int, status string, details map[string]string) {
	s.t.Helper()
	code, _, text := s.call("GET", "/api/health", nil)
	var answer struct {
		Status string
		Parts  map[string]struct{ Status, Detail string }
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
	details = map[string]string{}
	for name, p := range answer.Parts {
		details[name] = p.Status + ": " + p.Detail
	}
	return code, answer.Status, details
}

// TestWrongSettingsHoldUpTheirPartAlone: what does not need the part goes on, and health says what is wrong.
func TestWrongSettingsHoldUpTheirPartAlone(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	beat := map[string]any{"user": "ann"}

	t.Run("event_log_and_queue", func(t *testing.T) {
		t.Parallel()
		s := serveApp(t, server.URL(), map[string]string{
			"COSMOS_ENDPOINT": "https://name.documents.azure.com", "COSMOS_KEY": reference, "ServiceBusConnection": reference,
			"LOCAL_QUEUE_URL": "http://127.0.0.1:1/local/queues", "AzureWebJobs_ExpirationListener_Disabled": "true",
		})
		s.must(200, "POST", "/api/heartbeat", beat)
		s.must(200, "GET", "/api/users/ann", nil)
		s.must(200, "GET", "/api/live", nil)
		s.must(503, "GET", "/api/users/ann/events", nil)
		code, status, details := s.healthNow()
		if code != 200 || status != "degraded" || !strings.HasPrefix(details["redis"], "ok") {
			t.Errorf("%d %s: %v", code, status, details)
		}
		for part, setting := range map[string]string{"eventLog": "COSMOS_KEY", "queue": "ServiceBusConnection"} {
			if !strings.HasPrefix(details[part], "degraded") || !strings.Contains(details[part], setting+" cannot be used") || !strings.Contains(details[part], "Key Vault") {
				t.Errorf("%s: %s", part, details[part])
			}
		}
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		s := serveApp(t, server.URL(), map[string]string{"REDIS_URL": reference, "SESSION_TTL_SECONDS": "45s"})
		s.must(503, "POST", "/api/heartbeat", beat)
		s.must(200, "GET", "/api/live", nil)
		s.must(200, "GET", "/api/users/ann/events", nil) // the event log needs no Redis
		code, status, details := s.healthNow()
		if code != 503 || status != "down" || !strings.HasPrefix(details["redis"], "down: REDIS_URL cannot be used") || !strings.Contains(details["redis"], "SESSION_TTL_SECONDS must be") {
			t.Errorf("%d %s: %v", code, status, details)
		}
	})
	t.Run("defaults_that_lose_nothing", func(t *testing.T) {
		t.Parallel()
		s := serveApp(t, server.URL(), map[string]string{
			"MAX_INSTANCES": "many", "LOG_LEVEL": "loud", "AzureWebJobs_ExpirationListener_Disabled": "perhaps", "MAX_DELIVERY_COUNT": "0", "COSMOS_KEY": "a2V5",
		})
		s.must(200, "POST", "/api/heartbeat", beat)
		code, status, details := s.healthNow()
		if code != 200 || status != "degraded" {
			t.Errorf("%d %s: %v", code, status, details)
		}
		for part, setting := range map[string]string{
			"redis": "MAX_INSTANCES", "process": "LOG_LEVEL", "listener": "AzureWebJobs_ExpirationListener_Disabled", "queue": "MAX_DELIVERY_COUNT", "eventLog": "COSMOS_KEY",
		} {
			if !strings.HasPrefix(details[part], "degraded") || !strings.Contains(details[part], setting) {
				t.Errorf("%s: %s", part, details[part])
			}
		}
	})
}

// handlerProcess is a handler that runs as main does, in this process.
type handlerProcess struct {
	t      *testing.T
	url    string
	output *testkit.Output
	ended  chan error
}

// startHandler runs a handler with an environment until the test ends. It answers when it returns.
func startHandler(t *testing.T, environ ...string) *handlerProcess {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	h := &handlerProcess{t: t, url: "http://127.0.0.1:" + strconv.Itoa(port), output: &testkit.Output{}, ended: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		h.ended <- run(ctx, append([]string{"FUNCTIONS_CUSTOMHANDLER_PORT=" + strconv.Itoa(port), "DATA_DIR=" + t.TempDir()}, environ...), h.output)
	}()
	t.Cleanup(func() {
		stop()
		<-h.ended
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		if code, _ := h.ask("GET", "/api/live", ""); code == http.StatusOK {
			return h
		}
		select {
		case err := <-h.ended:
			t.Fatalf("the handler ended: %v\n%s", err, h.output)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the handler does not answer\n%s", h.output)
		}
	}
}

// ask makes a request; code is 0 when it is not answered in time.
func (h *handlerProcess) ask(method, path, body string) (code int, text string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 3*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, ""
	}
	defer answer.Body.Close()
	all, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, ""
	}
	return answer.StatusCode, string(all) + fmt.Sprint(answer.Header)
}

// TestWrongSettingsAreLoggedAtOnce: all of them, and what looks like a setting and is none, before anything is asked.
func TestWrongSettingsAreLoggedAtOnce(t *testing.T) {
	t.Parallel()
	h := startHandler(t,
		"REDIS_HOST=redis://:hunter2@host:6379", "REDIS_PARTITIONS=0", "SESSION_TTL=90", "COSMOS_ENDPOINT=AccountEndpoint=https://x.documents.azure.com;AccountKey=hunter2",
		"ServiceBusConnection__fullyQualifiedNamespace=sb://name.servicebus.windows.net/", "LOG_LEVEL=loud", "PATH=/bin", "AzureWebJobs_ExpirationListener_Disabled=true",
	)
	lines := map[string]string{}
	for line := range strings.Lines(h.output.String()) {
		var entry struct{ Level, Setting, Part, Problem string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if entry.Problem != "" {
			lines[strings.Fields(entry.Problem)[0]] = entry.Level
		}
	}
	want := map[string]string{
		"REDIS_HOST": "ERROR", "REDIS_PARTITIONS": "ERROR", "COSMOS_ENDPOINT": "ERROR", "ServiceBusConnection__fullyQualifiedNamespace": "ERROR", "LOG_LEVEL": "WARN", "SESSION_TTL": "WARN",
	}
	if fmt.Sprint(lines) != fmt.Sprint(want) || h.output.Count("hunter2") > 0 {
		t.Errorf("%v, want %v in\n%s", lines, want, h.output)
	}
}

// TestPortThatIsWrong ends the process: nobody could ask it why.
func TestPortThatIsWrong(t *testing.T) {
	t.Parallel()
	output := &testkit.Output{}
	err := run(t.Context(), []string{"FUNCTIONS_CUSTOMHANDLER_PORT=hunter2"}, output)
	if err == nil || !strings.Contains(err.Error(), "FUNCTIONS_CUSTOMHANDLER_PORT must be a whole number") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

// The secrets of TestSecretsAreNotTold. Each has what libraries are known to encode on their way into an error.
const (
	redisSecret  = "Redis+Secret/%23 1&&="
	keySecret    = "UmVkaXNLZXkrL3NlY3JldDE="
	busSecret    = "QnVzU2VjcmV0Ky9rZXk0NTY="
	cosmosSecret = "Q29zbW9zU2VjcmV0Ky9rZXk3ODk="
	otherSecret  = "sig=U2lnbmF0dXJlKy9zZWNyZXQ%3D"
)

// formsOf are the ways in which a secret may be written.
func formsOf(secret string) []string {
	raw := []byte(secret)
	quoted, _ := json.Marshal(secret)
	forms := []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), url.UserPassword("", secret).String()[1:], strings.ToLower(url.QueryEscape(secret)), strings.Trim(string(quoted), `"`),
		base64.StdEncoding.EncodeToString(raw), base64.RawStdEncoding.EncodeToString(raw), base64.URLEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
		hex.EncodeToString(raw), strconv.Quote(secret), secret[:len(secret)*2/3],
	}
	if decoded, err := base64.StdEncoding.DecodeString(secret); err == nil {
		forms = append(forms, string(decoded), hex.EncodeToString(decoded))
	}
	slices.Sort(forms)
	return slices.Compact(forms)
}

// TestSecretsAreNotTold has every part fail in many ways, with a secret in each setting that may have one and in each
// that may not: no log line, health, metric or answer has it, however it is written.
func TestSecretsAreNotTold(t *testing.T) {
	t.Parallel()
	plain := testkit.Start(t, "--requirepass", "another")
	certified := httptest.NewTLSServer(http.NotFoundHandler()) // by an authority that nobody trusts
	t.Cleanup(certified.Close)
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"code":"Unauthorized","message":"The input authorization token cannot serve the request: %s"}`, r.Header.Get("Authorization"))
	}))
	t.Cleanup(refusing.Close)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	hostOf := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	nobody := strings.Repeat("x", 64) + ".example"
	bus := func(host, more string) string {
		return "ServiceBusConnection=Endpoint=sb://" + host + "/;SharedAccessKeyName=rule;SharedAccessKey=" + busSecret + more
	}
	redisURL := func(scheme, host string) string {
		return (&url.URL{Scheme: scheme, User: url.UserPassword("ann", redisSecret), Host: host, Path: "/0"}).String()
	}
	const onPlain = ";UseDevelopmentEmulator=true"
	for name, environ := range map[string][]string{
		"nothing_listens": {
			"REDIS_URL=" + redisURL("redis", gone.Addr().String()), bus(gone.Addr().String(), onPlain), "COSMOS_ENDPOINT=http://" + gone.Addr().String(), "COSMOS_KEY=" + cosmosSecret,
		},
		"unknown_host": {
			"REDIS_URL=" + redisURL("rediss", nobody+":6380"), bus(nobody, ""), "COSMOS_ENDPOINT=https://" + nobody, "COSMOS_KEY=" + cosmosSecret,
		},
		"wrong_password": {
			"REDIS_URL=" + redisURL("redis", plain.Addr), bus(plain.Addr, onPlain), "COSMOS_ENDPOINT=http://" + hostOf(refusing), "COSMOS_KEY=" + cosmosSecret,
		},
		"tls_to_a_plain_port": {
			"REDIS_HOST=" + plain.Addr, "REDIS_ACCESS_KEY=" + keySecret, bus(plain.Addr, ""), "COSMOS_ENDPOINT=https://" + plain.Addr, "COSMOS_KEY=" + cosmosSecret,
		},
		"certificate": {
			"REDIS_HOST=" + hostOf(certified), "REDIS_ACCESS_KEY=" + keySecret, bus(hostOf(certified), ""), "COSMOS_ENDPOINT=" + certified.URL, "COSMOS_KEY=" + cosmosSecret,
		},
		"plain_to_a_tls_port": {
			"REDIS_URL=" + redisURL("redis", hostOf(certified)), bus(hostOf(certified), onPlain), "COSMOS_ENDPOINT=http://" + hostOf(certified), "COSMOS_KEY=" + cosmosSecret,
		},
		"signature": {
			"REDIS_URL=" + redisURL("redis", hostOf(refusing)),
			"ServiceBusConnection=Endpoint=sb://" + gone.Addr().String() + ";SharedAccessSignature=SharedAccessSignature sr=x&" + otherSecret + "&se=1&skn=rule" + onPlain,
			"COSMOS_ENDPOINT=http://" + hostOf(refusing), "COSMOS_KEY=" + cosmosSecret,
		},
		"misplaced": {
			"REDIS_HOST=" + redisURL("redis", plain.Addr), "REDIS_ACCESS_KEY=rediss://:" + url.QueryEscape(redisSecret) + "@host",
			"ServiceBusConnection__fullyQualifiedNamespace=Endpoint=sb://x/;SharedAccessKeyName=rule;SharedAccessKey=" + busSecret,
			"COSMOS_ENDPOINT=AccountEndpoint=https://x.documents.azure.com:443/;AccountKey=" + cosmosSecret, "COSMOS_DATABASE=AccountKey=" + cosmosSecret,
			"EXPIRATION_ROUTES=Endpoint=sb://x/;SharedAccessKeyName=rule;SharedAccessKey=" + busSecret, "WEBSITE_SITE_NAME=" + redisURL("redis", plain.Addr),
			"LOCAL_QUEUE_URL=http://ann:" + url.QueryEscape(redisSecret) + "@127.0.0.1:1/", "REDIS_KEY=" + keySecret, "LOG_LEVEL=" + keySecret,
		},
		"unencoded": {
			"REDIS_URL=redis://ann:" + redisSecret + "@" + plain.Addr, "ServiceBusConnection=Endpoint=sb://x/;SharedAccessKey=" + busSecret, "COSMOS_KEY=*" + cosmosSecret,
			"COSMOS_ENDPOINT=http://" + hostOf(refusing),
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := startHandler(t, append(environ, "EXPIRATION_ROUTES=cart:*=carts", "LOG_LEVEL=debug")...)
			var told []string
			for _, call := range []struct{ method, path, body string }{
				{"POST", "/api/heartbeat", `{"user":"ann"}`},
				{"POST", "/api/heartbeats", `{"heartbeats":[{"user":"ann"}]}`},
				{"POST", "/api/leave", `{"user":"ann"}`},
				{"GET", "/api/users/ann", ""},
				{"GET", "/api/users/ann/events", ""},
				{"GET", "/api/events/AAAAAAAAAAAAA-AAAAAAAAAAAAAAAA", ""},
				{"POST", "/api/events/AAAAAAAAAAAAA-AAAAAAAAAAAAAAAA/replay", ""},
				{"POST", "/HeartbeatMessages", `{"Data":{"messages":"[\"{\\\"user\\\":\\\"ann\\\"}\"]"},"Metadata":{"MessageIdArray":"[\"1\"]","DeliveryCountArray":"[1]"}}`},
				{"POST", "/ConnectivityWorker", `{"Data":{"messages":"[\"x\"]"},"Metadata":{"MessageIdArray":"[\"1\"]","DeliveryCountArray":"[1]"}}`},
				{"GET", "/api/metrics", ""},
			} {
				_, text := h.ask(call.method, call.path, call.body)
				told = append(told, text)
			}
			// Every part has failed once health says so of each.
			testkit.Eventually(t, "all parts fail", func(context.Context, *redis.Client) (bool, error) {
				_, text := h.ask("GET", "/api/health", "")
				told = append(told, text)
				var answer struct {
					Parts map[string]struct{ Status, Detail string }
				}
				if err := json.NewDecoder(strings.NewReader(text)).Decode(&answer); err != nil {
					return false, err
				}
				for _, part := range []string{"redis", "queue", "eventLog"} {
					if p := answer.Parts[part]; p.Status == "ok" || p.Detail == "" {
						return false, fmt.Errorf("%s: %v", part, p)
					}
				}
				return true, nil
			}, plain)
			told = append(told, h.output.String())
			all := strings.Join(told, "\n")
			if !strings.Contains(all, "handler started") || !strings.Contains(all, "userconnectivity_build_info") {
				t.Error("log or metrics are missing")
			}
			for _, secret := range []string{redisSecret, keySecret, busSecret, cosmosSecret, otherSecret} {
				for _, form := range formsOf(secret) {
					if at := strings.Index(all, form); at >= 0 {
						t.Errorf("%q is told, as %q: %q", secret, form, all[max(at-200, 0):min(at+200, len(all))])
					}
				}
			}
		})
	}
}
