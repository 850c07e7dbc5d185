package queue

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"userconnectivity/handler/presence"
)

func TestParseRoutes(t *testing.T) {
	t.Parallel()
	many := strings.Repeat("a=q;", 32)
	for _, tt := range []struct{ text, want, fault string }{
		{"", "", ""},
		{" ;; ", "", ""},
		{"cart:*=carts", "cart:*=carts", ""},
		{" cart:* = carts ; lock:??=team/locks.v2;", "cart:*=carts;lock:??=team/locks.v2", ""},
		{"a=b=c", "a=b=c", ""},
		{"==q", "==q", ""},
		{"ключ:*=q", "ключ:*=q", ""},
		{many, strings.TrimSuffix(many, ";"), ""},
		{strings.Repeat("p", 256) + "=" + strings.Repeat("q", 259), strings.Repeat("p", 256) + "=" + strings.Repeat("q", 259), ""},
		{many + "b=q", "", "33 routes"},
		{"carts", "", `"carts" is not pattern=queue`},
		{"=carts", "", "is not pattern=queue"},
		{"  =carts", "", "is not pattern=queue"},
		{"cart:*=", "", "no name of a queue"},
		{"cart:*=my queue", "", `"my queue" is no name of a queue`},
		{"a=/q", "", "no name of a queue"},
		{"a=" + strings.Repeat("q", 260), "", "no name of a queue"},
		{strings.Repeat("p", 257) + "=q", "", "at most 256 bytes"},
		{"\xff=q", "", "not UTF-8"},
		{"a=q;b\nc=\n", "", "no name of a queue"},
	} {
		got, err := ParseRoutes(tt.text)
		if string(got) != tt.want || (err == nil) != (tt.fault == "") {
			t.Errorf("%.80q: %.80q, %v", tt.text, got, err)
		}
		if err != nil && (!strings.Contains(err.Error(), tt.fault) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300) {
			t.Errorf("%.80q: %v, want %q", tt.text, err, tt.fault)
		}
	}
}

func TestRouteOfAKey(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ routes, key, want string }{
		{"", "a", ""},
		{"", "", ""},
		{"a=q", "a", "q"},
		{"a=q", "b", ""},
		{"a=q", "aa", ""},
		{"a=q", "", ""},
		{"a=q", "A", ""},
		{"*=q", "", "q"},
		{"*=q", "a\nb", "q"},
		{"**=q", "abc", "q"},
		{"?=q", "", ""},
		{"?=q", "a", "q"},
		{"?=q", "é", "q"},
		{"?=q", "ab", ""},
		{"??=q", "é", ""},
		{"a*=q", "a", "q"},
		{"a*=q", "abc", "q"},
		{"a*=q", "ba", ""},
		{"*a=q", "bab", ""},
		{"*a=q", "baba", "q"},
		{"a*b*c=q", "a1b2b3c", "q"},
		{"a*b*c=q", "acb", ""},
		{"*a?=q", "aab", "q"},
		{"a=b=q", "a=b", "q"},
		{"[ab]=q", "a", ""},
		{"[ab]=q", "[ab]", "q"},
		{`\*=q`, `\x`, "q"},
		{"a*=one;*=two", "ab", "one"},
		{"a*=one;*=two", "b", "two"},
		{"*=two;a*=one", "ab", "two"},
	} {
		got, ok := Routes(tt.routes).Queue(tt.key)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q goes to %q, %v; want %q", tt.routes, tt.key, got, ok, tt.want)
		}
	}
}

func TestDestinations(t *testing.T) {
	t.Parallel()
	d := Destinations{Events: "events", Routes: "a*=one"}
	for _, tt := range []struct {
		e    presence.Event
		want string
	}{
		{sample(), "events"},
		{presence.Event{Type: presence.KeyExpired, Subject: presence.Subject{Key: "ab"}}, "one"},
		{presence.Event{Type: presence.KeyExpired, Subject: presence.Subject{Key: "b"}}, ""},
	} {
		if got, ok := d.Of(tt.e); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s %q goes to %q, %v; want %q", tt.e.Type, tt.e.Key, got, ok, tt.want)
		}
	}
}

// FuzzRoutes: what is taken reads the same again, and matches as a regular expression of the same meaning does.
func FuzzRoutes(f *testing.F) {
	for _, text := range []string{"cart:*=carts;lock:??=locks", "a=b=c", "*a*b?=q", "**?*=q;?=r", "=", ";;", "a;b=q", "é?=q", "a*=q;\x00"} {
		for _, key := range []string{"cart:7", "lock:ab", "a=b", "xaybz", "", "é\xff", "a\nb"} {
			f.Add(text, key)
		}
	}
	f.Fuzz(func(t *testing.T, text, key string) {
		routes, err := ParseRoutes(text)
		if err != nil {
			return
		}
		if again, err := ParseRoutes(string(routes)); err != nil || again != routes {
			t.Fatalf("%q is read as %q, %v", routes, again, err)
		}
		if !utf8.ValidString(key) {
			_, _ = routes.Queue(key) // regular expressions see other characters there
			return
		}
		want := ""
		for route := range strings.SplitSeq(string(routes), ";") {
			i := strings.LastIndex(route, "=")
			if i <= 0 {
				continue
			}
			expression := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(route[:i]))
			if regexp.MustCompile("(?s)^(" + expression + ")$").MatchString(key) {
				want = route[i+1:]
				break
			}
		}
		if got, ok := routes.Queue(key); got != want || ok != (want != "") {
			t.Fatalf("%q: %q goes to %q, %v; want %q", routes, key, got, ok, want)
		}
	})
}

func expiry(key string) presence.Event {
	at := time.UnixMilli(1795238400123).UTC()
	id := presence.KeyEventID(key, at.UnixMilli(), 7)
	return presence.Event{
		ID: id, Type: presence.KeyExpired, Subject: presence.Subject{Key: key},
		Body:        presence.Body{Epoch: at.UnixMilli(), Reason: presence.ReasonExpired, DetectedAt: at, Life: "L"},
		Traceparent: presence.TraceparentOf(id),
	}
}

// TestMessageOfAnExpiredKey: the key takes the place of user and session, and our own worker has nothing to do for the type.
func TestMessageOfAnExpiredKey(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ key, subject string }{
		{"cart:7", "cart:7"},
		{"a\nb\x00c", "a\uFFFDb\uFFFDc"},
		{" x ", " x "},
		{strings.Repeat("k", 2000), strings.Repeat("k", 2000)},
	} {
		e := expiry(tt.key)
		m, err := codec.Encode(e, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, hasUser := m.Properties["user"]
		if m.ID != e.ID || m.Subject != "redis.key.expired" || m.SessionID != presence.PartitionKey(tt.key) || m.Properties["key"] != tt.key || hasUser ||
			m.Properties["reason"] != "expired" || m.Properties["epoch"] != e.Epoch {
			t.Errorf("message %+v", m)
		}
		var body struct {
			Type, Subject, Time string
			Data                map[string]any
		}
		if err := json.Unmarshal(m.Body, &body); err != nil {
			t.Fatal(err)
		}
		if body.Type != "userconnectivity.redis.key.expired" || body.Subject != tt.subject || body.Time != "2026-11-21T05:20:00.123Z" {
			t.Errorf("CloudEvent %+v, want subject %q", body, tt.subject)
		}
		want := map[string]any{"key": tt.key, "epoch": float64(e.Epoch), "reason": "expired", "deadline": nil, "groups": []any{}, "sessions": []any{}, "life": "L", "generation": 0.0}
		if got := fmt.Sprint(body.Data); got != fmt.Sprint(want) {
			t.Errorf("data %s, want %v", got, want)
		}
		if got, _, err := codec.Decode(m.Body); err != nil || got.Type.Valid() || got.ID != e.ID || got.Key != e.Key {
			t.Errorf("decoded: %+v, %v", got, err)
		}
	}
}
