package main

import (
	"encoding/json"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
)

// openContract reads the contract that an app serves.
func openContract(t *testing.T, s *served) *contract {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(s.must(200, "GET", "/api/openapi.json", nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, schema := range doc.Components.Schemas {
		tighten(schema.Value, map[*openapi3.Schema]bool{})
	}
	return &contract{t, doc}
}

// contract is what an app publishes, made strict: a field that it does not have breaks it.
type contract struct {
	t   *testing.T
	doc *openapi3.T
}

// tighten refuses, in every object that lists its fields, those that are not listed.
func tighten(s *openapi3.Schema, seen map[*openapi3.Schema]bool) {
	if s == nil || seen[s] {
		return
	}
	seen[s] = true
	if s.Properties != nil && s.AdditionalProperties.Schema == nil {
		s.AdditionalProperties.Has = new(bool)
	}
	for _, p := range s.Properties {
		tighten(p.Value, seen)
	}
	if s.Items != nil {
		tighten(s.Items.Value, seen)
	}
	if s.AdditionalProperties.Schema != nil {
		tighten(s.AdditionalProperties.Schema.Value, seen)
	}
}

// hold holds a text against one of the schemas and returns it decoded.
func (c *contract) hold(schema string, text []byte) map[string]any {
	c.t.Helper()
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		c.t.Fatalf("%v in %s", err, text)
	}
	if err := c.doc.Components.Schemas[schema].Value.VisitJSON(v, openapi3.MultiErrors()); err != nil {
		c.t.Errorf("%s is not as openapi.yaml says: %v", text, err)
	}
	return v
}

// TestHealthIsAsDocumented holds what health really answers, in every state of its parts, against openapi.yaml, and
// finds every field that is documented.
func TestHealthIsAsDocumented(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	cluster := testkit.StartCluster(t, 3, 0)
	account := cosmosfake.New(cosmosfake.Config{Key: "a2V5"})
	for container, key := range map[string]string{"events": "/pk", "users": "/id", "profiles": "/id"} {
		account.CreateContainer("connectivity", container, key, 0)
	}
	cosmos := httptest.NewServer(account)
	t.Cleanup(cosmos.Close)

	shown := map[string]bool{}
	look := func(s *served, state string, status ...int) {
		t.Helper()
		got, _, text := s.call("GET", "/api/health", nil)
		if !slices.Contains(status, got) {
			t.Errorf("%s: %d %s", state, got, text)
		}
		health := openContract(t, s).hold("Health", text)
		for part, fields := range health["parts"].(map[string]any) {
			for field := range fields.(map[string]any) {
				shown[part+"."+field] = true
			}
		}
		t.Logf("%s: %s", state, text)
	}
	s := serveApp(t, server.URL(), map[string]string{"COSMOS_ENDPOINT": cosmos.URL, "COSMOS_KEY": "a2V5", "EXPIRATION_ROUTES": "cart:*=carts"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	s.waitFor("the listener runs", map[string]float64{"listener_running": 1, "listener_notifications_on": 1})
	look(s, "well, but without a queue", 200)
	s.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceStart|IPAddress|10.0.0.4", time.Now()))
	s.must(202, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	look(s, "maintenance", 200, 503)

	other := serveApp(t, server.URL(), map[string]string{"AzureWebJobs_ExpirationListener_Disabled": "true", "LOG_LEVEL": "loud"})
	look(other, "without the listener and before anything was asked", 200)
	given := presence.Event{ID: presence.EventID("ann", "s", presence.UserOnline, 1), Type: presence.UserOnline, Subject: presence.Subject{User: "ann", Session: "s"}, Body: presence.Body{Epoch: 1, DetectedAt: time.Now()}}
	if err := other.logged.Write(t.Context(), []eventlog.Update{{Event: given, Steps: []eventlog.Step{{Status: eventlog.Dead, At: time.Now()}}}}); err != nil {
		t.Fatal(err)
	}
	look(other, "an event was given up", 200)
	many := serveApp(t, cluster.Primaries[0].URL(), nil)
	many.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	many.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceStart", time.Now()))
	look(many, "cluster", 200, 503)
	cosmos.CloseClientConnections()
	cosmos.Close()
	look(s, "the event log is gone", 200, 503)
	server.Kill()
	look(other, "Redis is gone", 200, 503)

	doc := openContract(t, many).doc
	for part, schema := range doc.Components.Schemas["Health"].Value.Properties["parts"].Value.Properties {
		for field := range schema.Value.Properties {
			if !shown[part+"."+field] {
				t.Errorf("openapi.yaml has %s of %s, which health never showed", field, part)
			}
		}
	}
}
