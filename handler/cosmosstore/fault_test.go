package cosmosstore_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
)

// faults are the ways in which a request fails and may be sent again.
var faults = map[string]cosmosfake.Fault{
	"429":                        {Status: http.StatusTooManyRequests, RetryAfter: time.Millisecond},
	"408 before it was done":     {Status: http.StatusRequestTimeout},
	"408 after it was done":      {Status: http.StatusRequestTimeout, Applied: true},
	"449":                        {Status: 449},
	"500":                        {Status: http.StatusInternalServerError},
	"503 before it was done":     {Status: http.StatusServiceUnavailable},
	"503 after it was done":      {Status: http.StatusServiceUnavailable, Applied: true},
	"connection lost before":     {Drop: true},
	"connection lost afterwards": {Drop: true, Applied: true},
}

// documentKinds are the requests on documents.
var documentKinds = []string{"create", "read", "replace", "upsert", "patch", "delete", "query"}

// TestConformanceWithFaults runs the suite on an account on which the first, third and fifth request of a kind for one
// document in seven goes wrong, in turn in every way there is.
func TestConformanceWithFaults(t *testing.T) {
	t.Parallel()
	names := slices.Sorted(maps.Keys(faults))
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		fake, server := account(t, cosmosfake.Config{})
		type target struct{ kind, container, id string }
		seen, victims, hurt := map[target]int{}, map[target]bool{}, 0
		fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault { // is asked about one request at a time
			if !slices.Contains(documentKinds, op.Kind) {
				return nil
			}
			at := target{op.Kind, op.Container, op.ID}
			if seen[at]++; seen[at] == 1 {
				victims[at] = len(seen)%7 == 1
			}
			if !victims[at] || seen[at]%2 == 0 || seen[at] > 5 {
				return nil
			}
			name := names[hurt%len(names)]
			if hurt++; op.Kind == "read" || op.Kind == "query" {
				name = "503 before it was done" // after others the client itself waits a second
			}
			fault := faults[name]
			return &fault
		})
		return open(t, cosmosstore.Config{Endpoint: server.URL})
	})
}

// TestEachFault has each kind of request of a write fail in each way, and checks that the outcome is as without.
func TestEachFault(t *testing.T) {
	t.Parallel()
	for name, fault := range faults {
		for _, kind := range []string{"create", "read", "replace", "patch"} {
			t.Run(name+" on "+kind, func(t *testing.T) {
				t.Parallel()
				fake, server := account(t, cosmosfake.Config{})
				s := open(t, cosmosstore.Config{Endpoint: server.URL})
				fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
					if op.Kind == kind && op.N == 1 {
						return &fault
					}
					return nil
				})
				first, second := eventlogtest.Offline("ada", 1), eventlogtest.Online("ada", 2)
				for _, u := range []eventlog.Update{
					eventlogtest.Sent(first), eventlogtest.Handled(first), // create, patch
					eventlogtest.Handled(second), eventlogtest.Sent(second), // patch, create; create, read, replace
				} {
					if err := s.Write(t.Context(), []eventlog.Update{u}); err != nil {
						t.Fatal(err)
					}
				}
				for _, id := range []string{first.ID, second.ID} {
					if got, want := history(t, s, id), "detected queued processing done"; got != want {
						t.Errorf("history = %s, want %s", got, want)
					}
				}
				for _, e := range []struct {
					n       int
					applied bool
				}{{1, true}, {3, true}, {2, false}} {
					applied, err := s.Apply(t.Context(), eventlogtest.Offline("ada", e.n))
					if err != nil || applied != e.applied {
						t.Errorf("apply event %d: %v, %v; want %v", e.n, applied, err, e.applied)
					}
				}
				if fake.Requests()[kind] < 2 {
					t.Errorf("%d requests of kind %s, want the failed one and its repetition", fake.Requests()[kind], kind)
				}
			})
		}
	}
}

func history(t *testing.T, s *cosmosstore.Store, id string) string {
	t.Helper()
	r, err := s.Event(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var statuses []string
	for _, step := range r.History {
		statuses = append(statuses, string(step.Status))
	}
	return strings.Join(statuses, " ")
}

// TestApplyWhoseAnswerIsLost reports what was done, whichever request it took.
func TestApplyWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"create", "patch"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			fake, server := account(t, cosmosfake.Config{})
			s := open(t, cosmosstore.Config{Endpoint: server.URL})
			if kind == "patch" {
				if _, err := s.Apply(t.Context(), eventlogtest.Offline("ada", 1)); err != nil {
					t.Fatal(err)
				}
				fake.Reset()
			}
			fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
				if op.Kind == kind && op.N == 1 {
					return &cosmosfake.Fault{Drop: true, Applied: true}
				}
				return nil
			})
			if applied, err := s.Apply(t.Context(), eventlogtest.Online("ada", 2)); !applied || err != nil {
				t.Errorf("apply: %v, %v; want true", applied, err)
			}
			if applied, err := s.Apply(t.Context(), eventlogtest.Online("ada", 2)); applied || err != nil {
				t.Errorf("the same event again: %v, %v; want false", applied, err)
			}
		})
	}
}

// TestStaleReplica answers reads as a replica does that missed the last write, unless they carry a session token.
func TestStaleReplica(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault { return &cosmosfake.Fault{Stale: op.Kind == "read"} })
	e := eventlogtest.Offline("ada", 1)
	for d := range 5 {
		failed := eventlog.Update{Event: e, Steps: []eventlog.Step{eventlogtest.Step(e, d+1, eventlog.Failed, d)}}
		if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e), failed}); err != nil {
			t.Fatal(err)
		}
		for n := range 3 {
			if _, err := s.Apply(t.Context(), eventlogtest.Online("ada", 10*d+n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	fake.Faults(nil)
	if got, want := history(t, s, e.ID), "detected queued failed failed failed failed failed"; got != want {
		t.Errorf("history = %s, want %s", got, want)
	}
	if u, _, err := s.User(t.Context(), "ada"); err != nil || u.Epoch != eventlogtest.Online("ada", 42).Epoch {
		t.Errorf("epoch = %d, %v; want that of the last event", u.Epoch, err)
	}
}

func TestThrottled(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	const refusals, wait = 3, 20 * time.Millisecond
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
		if op.Kind == "create" && op.N <= refusals {
			return &cosmosfake.Fault{Status: http.StatusTooManyRequests, RetryAfter: wait}
		}
		return nil
	})
	begin := time.Now()
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Offline("ada", 1))}); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(begin); waited < refusals*wait {
		t.Errorf("waited %v, want at least the %v that the answers asked for", waited, refusals*wait)
	}
	if c := s.Charges()["event create"]; c.Requests != refusals+1 || c.Throttled != refusals {
		t.Errorf("charges of creates: %+v, want %d requests, %d of them throttled", c, refusals+1, refusals)
	}

	// A wait past the deadline is not begun.
	fake.Faults(func(cosmosfake.Operation) *cosmosfake.Fault {
		return &cosmosfake.Fault{Status: http.StatusTooManyRequests, RetryAfter: time.Hour}
	})
	err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Offline("ada", 2))})
	if !errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "throughput update") {
		t.Errorf("write to a throttled account: %v, want ErrUnavailable and how to get more throughput", err)
	}
}

func TestSlowAccount(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL, AttemptTimeout: time.Second})
	hold := make(chan struct{})
	defer close(hold)

	// The account does not even tell its regions: the client of which nothing came must not be kept.
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
		if op.Kind == "account" {
			return &cosmosfake.Fault{Hold: hold}
		}
		return nil
	})
	e := eventlogtest.Offline("ada", 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.Write(ctx, []eventlog.Update{eventlogtest.Sent(e)})
	if !errors.Is(err, eventlog.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write to an account that does not answer: %v, want ErrUnavailable and DeadlineExceeded", err)
	}

	// One slow answer is given up, and the request is sent again.
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
		if op.Kind == "create" && op.N == 1 {
			return &cosmosfake.Fault{Hold: hold}
		}
		return nil
	})
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); err != nil {
		t.Errorf("write of which one attempt got no answer: %v", err)
	}
	if n := fake.Requests()["create"]; n < 2 {
		t.Errorf("%d creates, want the one that was given up and another", n)
	}
}

// TestAccountThatComesBack asks an account that refuses to tell its regions, which the official client remembers for
// five minutes, and once more when it is well.
func TestAccountThatComesBack(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
		return &cosmosfake.Fault{Status: http.StatusServiceUnavailable}
	})
	e := eventlogtest.Offline("ada", 1)
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Fatalf("write: %v, want ErrUnavailable", err)
	}
	if n := fake.Requests()["create"]; n != 0 {
		t.Fatalf("%d creates, want none before the regions are known", n)
	}
	fake.Faults(nil)
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); err != nil {
		t.Errorf("write to the account that came back: %v", err)
	}
}

func TestCloseEndsRequests(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	hold, held := make(chan struct{}), make(chan struct{})
	defer close(hold)
	var once sync.Once
	fake.Faults(func(cosmosfake.Operation) *cosmosfake.Fault {
		once.Do(func() { close(held) })
		return &cosmosfake.Fault{Hold: hold}
	})
	result := make(chan error, 1)
	go func() {
		result <- s.Write(context.Background(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Offline("ada", 1))})
	}()
	<-held
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-result; !errors.Is(err, eventlog.ErrClosed) {
		t.Errorf("write during Close: %v, want ErrClosed", err)
	}
}

// token is an Entra credential.
type token string

func (s token) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if s == "" {
		return azcore.AccessToken{}, errors.New("the identity endpoint does not answer")
	}
	return azcore.AccessToken{Token: string(s), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// jwtOf is a token of the identity with that object id.
func jwtOf(oid string) string {
	return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(`{"oid":"`+oid+`"}`)) + ".c2ln"
}

func TestSetupErrorsSayHowToMendThem(t *testing.T) {
	t.Parallel()
	wrongKey := "d3Jvbmcga2V5IG9mIHRoZSBhY2NvdW50"
	tests := []struct {
		name   string
		fake   cosmosfake.Config
		change func(*cosmosstore.Config, *cosmosfake.Server)
		want   []string
	}{
		{
			name:   "wrong key",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) { c.Key = cosmosstore.Secret(wrongKey) },
			want:   []string{"COSMOS_KEY", "az cosmosdb keys list"},
		},
		{
			name:   "key that is not base64",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) { c.Key = "wrong key!" },
			want:   []string{"COSMOS_KEY", "base64", "az cosmosdb keys list"},
		},
		{
			name:   "no database",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) { c.Database = "other" },
			want:   []string{"database other does not exist", "az cosmosdb sql database create", "--name other"},
		},
		{
			name:   "no container",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) { c.Containers.Events = "log" },
			want:   []string{"container log of database presence", "az cosmosdb sql container create", "--partition-key-path /pk --ttl 2592000"},
		},
		{
			name: "no role",
			fake: cosmosfake.Config{Token: "good", Denied: true},
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) {
				c.Key, c.Credential = "", func() (azcore.TokenCredential, error) { return token("good"), nil }
			},
			want: []string{"no role", "az cosmosdb sql role assignment create", "00000000-0000-0000-0000-000000000002"},
		},
		{
			name: "no role for a named identity",
			fake: cosmosfake.Config{Token: jwtOf("1d-of-identity"), Denied: true},
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) {
				c.Key, c.Credential = "", func() (azcore.TokenCredential, error) { return token(jwtOf("1d-of-identity")), nil }
			},
			want: []string{"object id 1d-of-identity", "account 127", "Cosmos DB Built-in Data Contributor", "--principal-id 1d-of-identity"},
		},
		{
			name: "clock an hour behind",
			fake: cosmosfake.Config{Ahead: time.Hour},
			want: []string{"the clock of this machine is 1h0m0s behind that of account 127", "timedatectl"},
		},
		{
			name: "clock an hour ahead",
			fake: cosmosfake.Config{Ahead: -time.Hour},
			want: []string{"the clock of this machine is 1h0m", "ahead of"},
		},
		{
			name: "token that the account does not take",
			fake: cosmosfake.Config{Token: "good"},
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) {
				c.Key, c.Credential = "", func() (azcore.TokenCredential, error) { return token("bad"), nil }
			},
			want: []string{"401", "az cosmosdb sql role assignment create"},
		},
		{
			name: "no token",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) {
				c.Key, c.Credential = "", func() (azcore.TokenCredential, error) { return token(""), nil }
			},
			want: []string{"account 127", "there is no token for the identity of this app", "the identity endpoint does not answer", "az functionapp identity show", "Cosmos DB Built-in Data Contributor"},
		},
		{
			name: "no credential",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) {
				c.Key, c.Credential = "", func() (azcore.TokenCredential, error) { return nil, errors.New("AZURE_CLIENT_ID is junk") }
			},
			want: []string{"AZURE_CLIENT_ID is junk"},
		},
		{
			name:   "endpoint where nobody listens",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) { c.Endpoint = "https://127.0.0.1:1/" },
			want:   []string{"https://127.0.0.1:1/", "COSMOS_ENDPOINT", "az cosmosdb show"},
		},
		{
			name:   "endpoint that is no URL",
			change: func(c *cosmosstore.Config, _ *cosmosfake.Server) { c.Endpoint = "name.documents.azure.com" },
			want:   []string{"COSMOS_ENDPOINT", "name.documents.azure.com", "https://"},
		},
		{
			name: "firewall",
			change: func(_ *cosmosstore.Config, fake *cosmosfake.Server) {
				fake.Faults(func(cosmosfake.Operation) *cosmosfake.Fault {
					return &cosmosfake.Fault{Status: http.StatusForbidden, Message: "Request blocked by your Cosmos DB account firewall settings."}
				})
			},
			want: []string{"firewall", "az cosmosdb update", "--ip-range-filter"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.fake.Key = accountKey
			fake := cosmosfake.New(tt.fake)
			fake.CreateContainer(databaseID, "events", "/pk", 0)
			fake.CreateContainer(databaseID, "users", "/id", 0)
			server := httptest.NewTLSServer(fake)
			t.Cleanup(server.Close)
			c := cosmosstore.Config{
				Endpoint: server.URL, Key: cosmosstore.Secret(accountKey), Database: databaseID, Transport: server.Client().Transport,
			}
			if tt.change != nil {
				tt.change(&c, fake)
			}
			s := open(t, c)
			e := eventlogtest.Offline("ada", 1)
			_, readErr := s.Event(t.Context(), e.ID)
			for what, err := range map[string]error{
				"write": s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}), "read": readErr, "ping": s.Ping(t.Context()),
			} {
				if err == nil {
					t.Fatalf("%s succeeded", what)
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s: %v\nwant it to say %q", what, err, want)
					}
				}
				if !errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, eventlog.ErrNotFound) {
					t.Errorf("%s: %v\nwant ErrUnavailable: it is no fault of the event", what, err)
				}
				for _, secret := range []string{accountKey, wrongKey, "wrong key!", "sig="} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("%s: the error tells a secret: %v", what, err)
					}
				}
			}
		})
	}
}

func TestPingChecksTheContainers(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	fake.CreateContainer(databaseID, "users", "/user", 0)
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	err := s.Ping(t.Context())
	if err == nil || !strings.Contains(err.Error(), "container users") || !strings.Contains(err.Error(), "/id") {
		t.Errorf("ping with a wrong partition key: %v, want an error that names container and key", err)
	}
	fake.CreateContainer(databaseID, "users", "/id", 0)
	fake.Reset()
	for range 3 {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]int{"container": 3, "read": 2}, fake.Requests()); diff != "" {
		t.Errorf("requests of three pings (-want +got):\n%s", diff)
	}
}

func TestEntraToken(t *testing.T) {
	t.Parallel()
	fake := cosmosfake.New(cosmosfake.Config{Token: "good"})
	fake.CreateContainer(databaseID, "events", "/pk", 0)
	server := httptest.NewTLSServer(fake)
	t.Cleanup(server.Close)
	s := open(t, cosmosstore.Config{
		Endpoint: server.URL, Transport: server.Client().Transport,
		Credential: func() (azcore.TokenCredential, error) { return token("good"), nil },
	})
	e := eventlogtest.Offline("ada", 1)
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Event(t.Context(), e.ID); err != nil {
		t.Error(err)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	t.Parallel()
	c := cosmosstore.Config{Key: "the key"}
	text, err := json.Marshal(c.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, printed := range []string{fmt.Sprint(c), fmt.Sprintf("%+v %#v %s %q", c, c, c.Key, c.Key), string(text)} {
		if strings.Contains(printed, "the key") {
			t.Errorf("%s tells the key", printed)
		}
	}
}
