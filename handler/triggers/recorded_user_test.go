package triggers

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"userconnectivity/handler/presence"
)

// oneUser knows one user.
type oneUser struct{ is presence.User }

func (u oneUser) User(context.Context, string) (presence.User, error) { return u.is, nil }

func (u oneUser) Users(context.Context, []string) ([]presence.User, error) {
	return []presence.User{u.is}, nil
}

// TestRecordedUserAnswers: a user is answered as earlier versions did, byte for byte.
func TestRecordedUserAnswers(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1795238400100).UTC()
	for text, u := range map[string]presence.User{
		`{"user":"alice","status":"online","epoch":7,"since":"2026-11-21T05:20:00.100Z","lastSeen":"2026-11-21T05:20:01.100Z",` +
			`"sessions":[{"session":"phone","expiresAt":"2026-11-21T05:21:00.100Z","meta":{"a":"\u003cb\u003e","n":1e309}},` +
			`{"session":"web","expiresAt":"2026-11-21T05:21:00.100Z","meta":null}],"groups":["north"]}`: {
			ID: "alice", Status: presence.Online, Epoch: 7, Since: at, LastSeen: at.Add(time.Second), Groups: []string{"north"},
			Sessions: []presence.Session{
				{ID: "phone", StartEpoch: 3, TTL: time.Minute, Grace: time.Second, ExpiresAt: at.Add(time.Minute), Meta: json.RawMessage(`{"a":"<b>","n":1e309}`)},
				{ID: "web", ExpiresAt: at.Add(time.Minute)},
			},
		},
		`{"user":"bob","status":"offline","epoch":null,"since":null,"lastSeen":null,"sessions":[],"groups":[],"stale":true}`: {ID: "bob", Status: presence.Offline, Stale: true},
	} {
		r := chi.NewRouter()
		r.Get("/api/users/{user}", user(oneUser{u}))
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest("GET", "/api/users/"+u.ID, nil))
		if w.Body.String() != text {
			t.Errorf("answered\n%s, want\n%s", w.Body, text)
		}
	}
}
