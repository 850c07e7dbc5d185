package cosmosstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// usersKeyPath is the partition key of the container of users: each user is a partition.
const usersKeyPath = "/id"

// userDocument is a users record in its container.
type userDocument struct {
	eventlog.UserDocument
	// Write is a random text, by which a writer that lost an answer knows its own write.
	Write string `json:"write"`
}

// errSuperseded ends an Apply whose event is not newer than the record.
var errSuperseded = errors.New("superseded")

// Apply makes e the last applied state of its user, and reports whether it did: only a higher epoch replaces. It returns
// eventlog.ErrLater where only a process of a later version can do it.
func (s *Store) Apply(ctx context.Context, e presence.Event) (applied bool, err error) {
	ctx, done := s.begin(ctx)
	defer done()
	fresh, applied := eventlog.UserDocument{}.Apply(e)
	if !applied {
		return false, ctx.Err()
	}
	way := s.patchUser
	w := userWrite{event: e, created: userDocument{fresh, rand.Text()}}
	for refusals := 0; ; refusals++ {
		err := way(ctx, &w)
		switch {
		case errors.Is(err, errSuperseded):
			return false, nil
		case isStatus(err, http.StatusNotFound):
			way = s.createUser
		case isStatus(err, http.StatusConflict) || isStatus(err, http.StatusPreconditionFailed):
			w.session = session(err)
			way = s.replaceUser
		default:
			return err == nil, err
		}
		if err := pause(ctx, refusals); err != nil {
			return false, fmt.Errorf("apply event %s: %w: another writer came in between each time: %w", e.ID, eventlog.ErrUnavailable, err)
		}
	}
}

// userWrite is an event on its way into the users record.
type userWrite struct {
	event   presence.Event
	created userDocument
	session *string
}

// patchUser replaces the state without reading it, when it is older. An event that does not change the status by its
// nature keeps since only where the status is the same, so it asks for that as well.
func (s *Store) patchUser(ctx context.Context, w *userWrite) error {
	d := w.created
	condition := fmt.Sprintf("from c where c.epoch < %d", d.Epoch)
	var patch azcosmos.PatchOperations
	patch.AppendSet("/status", d.Status)
	patch.AppendSet("/epoch", d.Epoch)
	patch.AppendSet("/groups", list(d.Groups))
	patch.AppendSet("/sessions", list(d.Sessions))
	patch.AppendSet("/life", d.Life)
	patch.AppendSet("/generation", d.Generation)
	patch.AppendSet("/write", d.Write)
	if !d.LastSeen.IsZero() {
		patch.AppendSet("/lastSeen", d.LastSeen)
	}
	if w.event.Type == presence.UserOnline || w.event.Type == presence.UserOffline {
		patch.AppendSet("/since", d.Since)
	} else {
		condition += fmt.Sprintf(" and c.status = '%s'", d.Status)
	}
	patch.SetCondition(condition)
	_, err := s.onUsers(ctx, "patch", d.ID, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.PatchItem(ctx, pk, d.ID, patch, nil)
	})
	return err
}

func (s *Store) createUser(ctx context.Context, w *userWrite) error {
	text, err := eventlog.Marshal(w.created)
	if err != nil {
		return err
	}
	_, err = s.onUsers(ctx, "create", w.created.ID, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.CreateItem(ctx, pk, text, nil)
	})
	return err
}

// replaceUser reads the record and replaces the version that it read, when that is older. Members that this version does
// not know stay, and junk in the place of those that it knows goes.
func (s *Store) replaceUser(ctx context.Context, w *userWrite) error {
	old, etag, err := s.readUser(ctx, w.created.ID, w.session)
	if err != nil {
		return err
	}
	var by struct {
		Write string `json:"write"`
	}
	if eventlog.Unmarshal(old.Text, &by) == nil && by.Write == w.created.Write {
		return nil // it was done, and only its answer was lost
	}
	next, applied, err := old.Apply(w.event)
	if err != nil {
		return err
	}
	if !applied {
		return errSuperseded
	}
	text, err := eventlog.Overlay(old.Text, userDocument{old.UserDocument, by.Write}, userDocument{next, w.created.Write})
	if err != nil {
		return err
	}
	_, err = s.onUsers(ctx, "replace", next.ID, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.ReplaceItem(ctx, pk, next.ID, text, &azcosmos.ItemOptions{IfMatchEtag: &etag})
	})
	if err == nil && old.Junk != nil {
		s.repaired.Add(1)
	}
	return err
}

func (s *Store) readUser(ctx context.Context, id string, session *string) (eventlog.StoredUser, azcore.ETag, error) {
	answer, err := s.onUsers(ctx, "read", id, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.ReadItem(ctx, pk, id, &azcosmos.ItemOptions{SessionToken: session})
	})
	if err != nil {
		return eventlog.StoredUser{}, "", err
	}
	return eventlog.ReadUser(answer.Value), answer.ETag, nil
}

// onUsers runs one request on the record of a user.
func (s *Store) onUsers(ctx context.Context, verb, id string, do onDocument) (azcosmos.ItemResponse, error) {
	return s.document(ctx, operation{"user " + verb, verb + " user " + id, s.config.Containers.Users}, id, do)
}

// User returns the last applied state of a user, and false for one of whom nothing is known. Its sessions have no
// deadline. What of the record cannot be read is left out.
func (s *Store) User(ctx context.Context, id string) (presence.User, bool, error) {
	ctx, done := s.begin(ctx)
	defer done()
	d, _, err := s.readUser(ctx, id, nil)
	if isStatus(err, http.StatusNotFound) {
		return presence.User{}, false, nil
	}
	if err != nil {
		return presence.User{}, false, err
	}
	u := d.User()
	u.ID = id
	return u, true, nil
}

// Repaired counts the users records with junk in them that this process wrote anew with the next event of their user.
func (s *Store) Repaired() int64 { return s.repaired.Load() }
