package triggers

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	jsonv2 "github.com/go-json-experiment/json"

	"userconnectivity/handler/jsonform"
	"userconnectivity/handler/presence"
)

// userReader knows users; presence.Tracker is one.
type userReader interface {
	User(ctx context.Context, id string) (presence.User, error)
	Users(ctx context.Context, ids []string) ([]presence.User, error)
}

type userView struct {
	User     string             `json:"user"`
	Status   presence.Status    `json:"status"`
	Epoch    *int64             `json:"epoch"`
	Since    time.Time          `json:"since"`
	LastSeen time.Time          `json:"lastSeen"`
	Sessions []presence.Session `json:"sessions"`
	Groups   []string           `json:"groups"`
	// Stale is set while the live state cannot be reached: the answer is what was last known.
	Stale bool `json:"stale,omitzero"`
}

// MarshalJSON writes the times as all answers have them.
func (v userView) MarshalJSON() ([]byte, error) {
	type members userView // without this method
	return jsonv2.Marshal(members(v), jsonform.Sent)
}

// user is GET /api/users/{user}. An unknown user is offline and was never seen: that is no error.
func user(u userReader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.EqualFold(chi.URLParam(r, "user"), "query") { // the path of UsersQuery, which the host passes on for a GET
			refuseMethod(w, r, http.MethodPost)
			return
		}
		id, err := pathID(r, "user")
		if err != nil {
			fail(w, r, err)
			return
		}
		known, err := u.User(r.Context(), id)
		if err != nil {
			fail(w, r, err)
			return
		}
		view := userView{
			User: known.ID, Status: known.Status, Since: known.Since, LastSeen: known.LastSeen, Sessions: known.Sessions,
			Groups: known.Groups, Stale: known.Stale,
		}
		if known.Epoch > 0 {
			view.Epoch = &known.Epoch
		}
		reply(w, http.StatusOK, view)
	}
}

type statusView struct {
	User     string          `json:"user"`
	Status   presence.Status `json:"status"`
	LastSeen *string         `json:"lastSeen"`
	Stale    bool            `json:"stale,omitempty"`
}

// usersQuery is POST /api/users/query: the status of up to presence.MaxBatch users, in the order asked.
func usersQuery(u userReader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Users []string `json:"users"`
		}
		if err := readJSON(w, r, maxBulkBody, &body); err != nil {
			fail(w, r, err)
			return
		}
		if err := checkCount("/users", len(body.Users), body.Users != nil); err != nil {
			fail(w, r, err)
			return
		}
		known, err := u.Users(r.Context(), body.Users)
		if err != nil {
			fail(w, r, err)
			return
		}
		views := make([]statusView, len(known))
		for i, k := range known {
			views[i] = statusView{User: k.ID, Status: k.Status, LastSeen: presence.FormatOptional(k.LastSeen), Stale: k.Stale}
		}
		reply(w, http.StatusOK, struct {
			Users []statusView `json:"users"`
		}{views})
	}
}
