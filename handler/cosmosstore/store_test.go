package cosmosstore_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
)

var accountKey = base64.StdEncoding.EncodeToString([]byte("the key of the account in tests"))

const (
	databaseID = "presence"
	retention  = 30 * 24 * time.Hour
)

// account is a fake account with its three containers.
func account(t testing.TB, c cosmosfake.Config) (*cosmosfake.Server, *httptest.Server) {
	t.Helper()
	c.Key = accountKey
	fake := cosmosfake.New(c)
	fake.CreateContainer(databaseID, "events", "/pk", int(retention.Seconds()))
	fake.CreateContainer(databaseID, "users", "/id", 0)
	fake.CreateContainer(databaseID, "profiles", "/id", 0)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	return fake, server
}

func open(t testing.TB, c cosmosstore.Config) *cosmosstore.Store {
	t.Helper()
	if c.Key == "" && c.Credential == nil {
		c.Key = cosmosstore.Secret(accountKey)
	}
	if c.Database == "" {
		c.Database = databaseID
	}
	s := cosmosstore.New(c)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		_, server := account(t, cosmosfake.Config{})
		return open(t, cosmosstore.Config{Endpoint: server.URL})
	})
}

// TestUsersOfOthers: the users records that another version or another program wrote.
func TestUsersOfOthers(t *testing.T) {
	t.Parallel()
	eventlogtest.RunUsers(t, func(t *testing.T) (eventlogtest.Store, eventlogtest.Records) {
		fake, server := account(t, cosmosfake.Config{})
		s := open(t, cosmosstore.Config{Endpoint: server.URL})
		return s, userRecords{s, fake}
	})
}

// userRecords are the documents of the users in an account.
type userRecords struct {
	store *cosmosstore.Store
	fake  *cosmosfake.Server
}

// Put lets the store make a document, and changes that one.
func (r userRecords) Put(t *testing.T, user, text string) {
	t.Helper()
	document, there := r.fake.Document(databaseID, "users", user, user)
	if !there {
		if _, err := r.store.Apply(t.Context(), eventlogtest.Online(user, 0)); err != nil {
			t.Fatal(err)
		}
		document, _ = r.fake.Document(databaseID, "users", user, user)
	}
	clear(document)
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&document); err != nil {
		t.Fatal(err)
	}
}

// Text returns a document.
func (r userRecords) Text(t *testing.T, user string) string {
	t.Helper()
	document, _ := r.fake.Document(databaseID, "users", user, user)
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestConformanceWithShortPages has the account return fewer documents than asked for.
func TestConformanceWithShortPages(t *testing.T) {
	t.Parallel()
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		_, server := account(t, cosmosfake.Config{MaxPage: 2})
		return open(t, cosmosstore.Config{Endpoint: server.URL})
	})
}

func TestNewDoesNoIO(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	if err := cosmosstore.New(cosmosstore.Config{Endpoint: server.URL, Key: "junk"}).Close(); err != nil {
		t.Error(err)
	}
	if n := len(fake.Requests()); n != 0 {
		t.Errorf("New and Close made requests: %v", fake.Requests())
	}
}

// TestCost counts the requests and the request units of every way that an event takes, as the account saw and charged
// them; what the store reports is the same.
func TestCost(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	ctx := t.Context()
	write := func(u eventlog.Update) error { return s.Write(ctx, []eventlog.Update{u}) }
	apply := func(n int) error {
		_, err := s.Apply(ctx, eventlogtest.Online("ada", n))
		return err
	}
	first, second := eventlogtest.Online("ada", 1), eventlogtest.Offline("ada", 2)
	failed := eventlog.Update{Event: second, Steps: []eventlog.Step{
		eventlogtest.Step(second, 0, eventlog.Detected, 0), eventlogtest.Step(second, 2, eventlog.Failed, 9),
	}}
	if err := s.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	reported := s.Charges()
	for _, step := range []struct {
		name     string
		do       func() error
		requests map[string]int
		ru       float64
	}{
		{"relay: first write", func() error { return write(eventlogtest.Sent(first)) }, map[string]int{"create": 1}, 5},
		{"worker: first delivery", func() error { return write(eventlogtest.Handled(first)) }, map[string]int{"patch": 1}, 10},
		{"worker: new user", func() error { return apply(1) }, map[string]int{"patch": 1, "create": 1}, 1 + 5},
		{"worker: known user", func() error { return apply(2) }, map[string]int{"patch": 1}, 10},
		{"worker: event that was overtaken", func() error { return apply(0) }, map[string]int{"patch": 1, "read": 1}, 1 + 1},
		{"relay: repeated write", func() error { return write(eventlogtest.Sent(first)) }, map[string]int{"create": 1, "read": 1}, 1 + 1},
		{"worker: repeated write", func() error { return write(eventlogtest.Handled(first)) }, map[string]int{"patch": 1, "read": 1}, 1 + 1},
		{"worker before the relay", func() error { return write(eventlogtest.Handled(second)) }, map[string]int{"patch": 1, "create": 1}, 1 + 5},
		{"relay after the worker", func() error { return write(eventlogtest.Sent(second)) }, map[string]int{"create": 1, "read": 1, "replace": 1}, 1 + 1 + 10},
		{"worker: second delivery", func() error { return write(failed) }, map[string]int{"read": 1, "replace": 1}, 1 + 10},
		{"read one event", func() error { _, err := s.Event(ctx, first.ID); return err }, map[string]int{"read": 1}, 1},
		{"read a page of two", func() error { _, err := s.UserEvents(ctx, "ada", 20, ""); return err }, map[string]int{"query": 1}, 2.3 + 2},
	} {
		fake.Reset()
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.requests, fake.Requests()); diff != "" {
			t.Errorf("%s: requests (-want +got):\n%s", step.name, diff)
		}
		var charged, told float64
		for _, ru := range fake.Charges() {
			charged += ru
		}
		for kind, c := range s.Charges() {
			told += c.RequestUnits - reported[kind].RequestUnits
		}
		reported = s.Charges()
		if math.Abs(charged-step.ru) > 0.5 || math.Abs(told-charged) > 0.05 {
			t.Errorf("%s: charged %.2f RU, the store tells %.2f, want %.2f", step.name, charged, told, step.ru)
		}
		t.Logf("%-34s %v  %.2f RU", step.name, fake.Requests(), charged)
	}
}

// TestWritersRaceForManyEvents has relay and worker write each of 1,000 events at the same moment.
func TestWritersRaceForManyEvents(t *testing.T) {
	t.Parallel()
	const events = 1000
	fake, server := account(t, cosmosfake.Config{})
	s, other := open(t, cosmosstore.Config{Endpoint: server.URL}), open(t, cosmosstore.Config{Endpoint: server.URL})
	var sent, handled []eventlog.Update
	for n := range events {
		e := eventlogtest.Offline(fmt.Sprint("user-", n%50), n)
		sent, handled = append(sent, eventlogtest.Sent(e)), append(handled, eventlogtest.Handled(e))
	}
	for at := 0; at < events; at += 100 {
		var group sync.WaitGroup
		for store, updates := range map[*cosmosstore.Store][]eventlog.Update{s: sent[at : at+100], other: handled[at : at+100]} {
			group.Go(func() {
				if err := store.Write(t.Context(), updates); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	for _, u := range sent {
		if got, want := history(t, s, u.Event.ID), "detected queued processing done"; got != want {
			t.Fatalf("history = %s, want %s", got, want)
		}
	}
	t.Logf("requests: %v", fake.Requests())
}

func TestWriteBoundsItsRequests(t *testing.T) {
	t.Parallel()
	const bound = 4
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL, InFlight: bound})
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	fake.Reset()
	full := make(chan struct{})
	var waiting atomic.Int32
	fake.Faults(func(cosmosfake.Operation) *cosmosfake.Fault {
		if waiting.Add(1) == bound { // the first ones are answered when as many as may are there
			close(full)
		}
		return &cosmosfake.Fault{Hold: full}
	})
	var updates []eventlog.Update
	for n := range 60 {
		updates = append(updates, eventlogtest.Sent(eventlogtest.Offline(fmt.Sprint("user-", n), n)))
	}
	if err := s.Write(t.Context(), updates); err != nil {
		t.Fatal(err)
	}
	if peak := fake.Peak(); peak != bound {
		t.Errorf("%d requests at the same time, want %d", peak, bound)
	}
}

func TestEventsExpireAndUsersStay(t *testing.T) {
	t.Parallel()
	var passed atomic.Int64
	_, server := account(t, cosmosfake.Config{Now: func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	e := eventlogtest.Online("ada", 1)
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at   time.Duration
		want int
	}{{retention - time.Minute, 1}, {retention + time.Minute, 0}} {
		passed.Store(int64(step.at))
		page, err := s.UserEvents(t.Context(), "ada", 10, "")
		if err != nil || len(page.Records) != step.want {
			t.Errorf("%d events after %v, want %d; %v", len(page.Records), step.at, step.want, err)
		}
	}
	if _, known, err := s.User(t.Context(), "ada"); !known || err != nil {
		t.Errorf("user after the retention of events: %v, %v", known, err)
	}
}

// TestDocuments looks at what is stored: people and other programs read it too.
func TestDocuments(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	e := eventlogtest.Online("ada", 1)
	for _, u := range []eventlog.Update{eventlogtest.Sent(e), eventlogtest.Handled(e)} {
		if err := s.Write(t.Context(), []eventlog.Update{u}); err != nil {
			t.Fatal(err)
		}
	}
	pk := e.ID[:13]
	d, ok := fake.Document(databaseID, "events", pk, e.ID)
	if !ok {
		t.Fatal("the event is not in its partition")
	}
	for name, want := range map[string]any{
		"pk": pk, "user": "ada", "session": "web", "type": "user.online", "status": "done", "fresh": false, "life": "life-1",
	} {
		if d[name] != want {
			t.Errorf("%s = %v, want %v", name, d[name], want)
		}
	}
	if _, set := d["ttl"]; set {
		t.Error("the event has a ttl of its own, want that of the container")
	}
}

// BenchmarkWrite measures what the client and the store add: the account is in the same process.
func BenchmarkWrite(b *testing.B) {
	_, server := account(b, cosmosfake.Config{})
	s := open(b, cosmosstore.Config{Endpoint: server.URL})
	for from := 0; from < b.N; from += 200 {
		var sent []eventlog.Update
		for n := from; n < min(from+200, b.N); n++ {
			sent = append(sent, eventlogtest.Sent(eventlogtest.Online(fmt.Sprint("user-", n), n)))
		}
		if err := s.Write(b.Context(), sent); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
}
