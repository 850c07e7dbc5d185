package eventlog

import (
	"time"

	"userconnectivity/handler/presence"
)

// UserDocument is the last applied state of a user as the stores keep it. It has no deadlines: what expires
// is known to Redis alone.
type UserDocument struct {
	ID     string          `json:"id"`
	Status presence.Status `json:"status"`
	Epoch  int64           `json:"epoch"`
	// Since is when the status began.
	Since    time.Time               `json:"since"`
	LastSeen time.Time               `json:"lastSeen"`
	Groups   []string                `json:"groups,omitempty"`
	Sessions []presence.EventSession `json:"sessions,omitempty"`
	// Life and Generation tell which life and rollback of the Redis data the state comes from (design D5).
	Life       string `json:"life,omitempty"`
	Generation int64  `json:"generation,omitzero"`
}

// Apply returns the state of a user after e, and whether e is newer than d; the zero UserDocument is a user
// of whom nothing is known. Only a higher epoch replaces, and it replaces all: an event that was overtaken
// changes nothing. Since moves with the events that change the status by their nature (user.online,
// user.offline), also when the one in between was overtaken; the others keep it. An event that is not a
// transition of a user is not applied.
func (d UserDocument) Apply(e presence.Event) (UserDocument, bool) {
	if !e.Type.Valid() || e.Epoch <= d.Epoch {
		return d, false
	}
	next := UserDocument{
		ID: e.User, Status: e.Status(), Epoch: e.Epoch, Since: d.Since, LastSeen: d.LastSeen,
		Groups: e.Groups, Sessions: e.Sessions, Life: e.Life, Generation: e.Generation,
	}
	if next.Status != d.Status || e.Type == presence.UserOnline || e.Type == presence.UserOffline {
		next.Since = stored(e.DetectedAt)
	}
	if !e.LastSeen.IsZero() {
		next.LastSeen = stored(e.LastSeen)
	}
	return next, true
}

// User returns the state that d is the stored form of; its sessions have no deadline.
func (d UserDocument) User() presence.User {
	u := presence.User{
		ID: d.ID, Status: d.Status, Epoch: d.Epoch, Since: d.Since, LastSeen: d.LastSeen, Groups: d.Groups,
	}
	for _, s := range d.Sessions {
		u.Sessions = append(u.Sessions, presence.Session{
			ID: s.Session, StartEpoch: s.StartEpoch,
			TTL: time.Duration(s.TTLSeconds) * time.Second, Grace: time.Duration(s.GraceSeconds) * time.Second,
		})
	}
	return u
}

func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
