package eventlog

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

// UserDocument is the last applied state of a user as the stores keep it. It has no deadlines: what expires
// is known to Redis alone. Read it with ReadUser.
//
// A later version that only adds members needs to do nothing: they stay. One that gives a member another form writes
// "format", a number above 1, and the epoch as a text of digits, which the conditional writes of earlier versions, that
// compare it as a number, never match. Status, since and lastSeen keep their form.
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
		u.Sessions = append(u.Sessions, s.Live())
	}
	return u
}

// StoredUser is a users record as it was found in a store.
type StoredUser struct {
	// UserDocument is what could be read of it.
	UserDocument
	// Text is the stored text without what could not be read: Overlay puts the changes into it.
	Text []byte
	// Junk names the members that could not be read, "" where the text as a whole is no JSON object; nil when all could.
	Junk []string
	// Later tells that only a later version may change the record.
	Later bool
}

// ReadUser reads a users record. Junk in it is left out and named: it keeps nobody's events from being applied.
func ReadUser(text []byte) StoredUser {
	var known struct {
		UserDocument
		Format float64 `json:"format"`
	}
	if Unmarshal(text, &known) == nil && jsontext.Value(text).Kind() == '{' {
		return StoredUser{UserDocument: known.UserDocument, Text: text, Later: known.Format > 1}
	}
	known.UserDocument, known.Format = UserDocument{}, 0
	var kept []member
	var junk []string
	found, err := membersOf(text)
	if err != nil {
		found = nil
	}
	for _, m := range found {
		next := known
		if one, err := object([]member{m}); err != nil || Unmarshal(one, &next) != nil {
			junk = append(junk, m.name)
			continue
		}
		known = next
		kept = append(kept, m)
	}
	if known.Format > 1 {
		var later struct {
			Epoch int64 `json:"epoch,string"`
		}
		if Unmarshal(text, &later) == nil {
			known.Epoch = later.Epoch
		}
		return StoredUser{UserDocument: known.UserDocument, Text: text, Later: true}
	}
	if junk == nil { // each member can be read, and the whole cannot
		junk = []string{""}
	}
	if text, err = object(kept); err != nil {
		text = []byte("{}")
	}
	return StoredUser{UserDocument: known.UserDocument, Text: text, Junk: junk}
}

// Apply is that of the UserDocument, or ErrLater where e is newer and only a later version may change the record.
func (u StoredUser) Apply(e presence.Event) (UserDocument, bool, error) {
	next, applied := u.UserDocument.Apply(e)
	if applied && u.Later {
		return u.UserDocument, false, fmt.Errorf("users record of %s: %w", e.User, ErrLater)
	}
	return next, applied, nil
}

func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
