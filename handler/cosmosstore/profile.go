package cosmosstore

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/eventlog"
)

// profilesKeyPath is the partition key of the container of profiles: each profile is a partition.
const profilesKeyPath = "/id"

// profileDocument keeps the profile apart from the properties that belong to the service, such as ttl.
type profileDocument struct {
	ID      string          `json:"id"`
	Profile json.RawMessage `json:"profile"`
	// Write is a random text, by which a writer that lost an answer knows its own write.
	Write string `json:"write"`
}

// Profile returns a profile and its ETag, or eventlog.ErrProfileNotFound.
func (s *Store) Profile(ctx context.Context, id string) (doc json.RawMessage, etag string, err error) {
	ctx, done := s.begin(ctx)
	defer done()
	d, etag, err := s.readProfile(ctx, id, nil)
	if isStatus(err, http.StatusNotFound) {
		err = fmt.Errorf("read profile %s: %w", id, eventlog.ErrProfileNotFound)
	}
	return d.Profile, etag, err
}

func (s *Store) readProfile(ctx context.Context, id string, session *string) (d profileDocument, etag string, err error) {
	answer, err := s.onProfiles(ctx, "read", id, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.ReadItem(ctx, pk, id, &azcosmos.ItemOptions{SessionToken: session})
	})
	if err != nil {
		return d, "", err
	}
	if err := json.Unmarshal(answer.Value, &d); err != nil {
		return d, "", fmt.Errorf("read profile %s: %w", id, err)
	}
	return d, string(answer.ETag), nil
}

// PutProfile writes a profile, a JSON object, and returns its ETag. With an ifMatch that is not empty it writes only
// when the profile has that ETag ("*": any), and returns eventlog.ErrProfileChanged otherwise.
func (s *Store) PutProfile(ctx context.Context, id string, doc json.RawMessage, ifMatch string) (etag string, err error) {
	ctx, done := s.begin(ctx)
	defer done()
	var object map[string]json.RawMessage
	if json.Unmarshal(doc, &object) != nil || object == nil {
		return "", fmt.Errorf("write profile %s: %w", id, eventlog.ErrProfileInvalid)
	}
	d := profileDocument{ID: id, Profile: doc, Write: rand.Text()}
	text, err := json.Marshal(d)
	if err != nil {
		return "", fmt.Errorf("write profile %s: %w", id, err)
	}
	verb := "replace"
	if ifMatch == "" {
		verb = "upsert"
	}
	answer, err := s.onProfiles(ctx, verb, id, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		switch ifMatch {
		case "":
			return c.UpsertItem(ctx, pk, text, nil)
		case "*":
			return c.ReplaceItem(ctx, pk, id, text, nil)
		}
		return c.ReplaceItem(ctx, pk, id, text, &azcosmos.ItemOptions{IfMatchEtag: to.Ptr(azcore.ETag(ifMatch))})
	})
	if isStatus(err, http.StatusPreconditionFailed) {
		if found, tag, readErr := s.readProfile(ctx, id, session(err)); readErr == nil && found.Write == d.Write {
			return tag, nil // it was done, and only its answer was lost
		}
	}
	if isStatus(err, http.StatusNotFound) || isStatus(err, http.StatusPreconditionFailed) {
		err = fmt.Errorf("write profile %s: %w", id, eventlog.ErrProfileChanged)
	}
	if err != nil {
		return "", err
	}
	return string(answer.ETag), nil
}

// DeleteProfile deletes a profile; one that is not there is no error.
func (s *Store) DeleteProfile(ctx context.Context, id string) error {
	ctx, done := s.begin(ctx)
	defer done()
	_, err := s.onProfiles(ctx, "delete", id, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.DeleteItem(ctx, pk, id, nil)
	})
	if isStatus(err, http.StatusNotFound) {
		return nil
	}
	return err
}

// onProfiles runs one request on a profile.
func (s *Store) onProfiles(ctx context.Context, verb, id string, do onDocument) (azcosmos.ItemResponse, error) {
	return s.document(ctx, operation{"profile " + verb, verb + " profile " + id, s.config.Containers.Profiles}, id, do)
}
