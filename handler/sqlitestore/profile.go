package sqlitestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"userconnectivity/handler/eventlog"
)

// Profile returns a profile and its ETag, or eventlog.ErrProfileNotFound.
func (s *Store) Profile(ctx context.Context, id string) (doc json.RawMessage, etag string, err error) {
	f, err := s.opened(ctx)
	if err != nil {
		return nil, "", err
	}
	var text []byte
	err = f.readProfile.QueryRowContext(ctx, id).Scan(&text, &etag)
	if errors.Is(err, sql.ErrNoRows) {
		err = eventlog.ErrProfileNotFound
	}
	if err != nil {
		return nil, "", fmt.Errorf("read profile %s: %w", id, s.classify(err))
	}
	return text, etag, nil
}

// PutProfile writes a profile, a JSON object, and returns its ETag: a quoted text that depends on the content
// alone. With an ifMatch that is not empty it writes only when the profile has that ETag ("*": any), and
// returns eventlog.ErrProfileChanged otherwise.
func (s *Store) PutProfile(ctx context.Context, id string, doc json.RawMessage, ifMatch string) (etag string, err error) {
	var object map[string]json.RawMessage
	if json.Unmarshal(doc, &object) != nil || object == nil {
		return "", fmt.Errorf("write profile %s: %w", id, eventlog.ErrProfileInvalid)
	}
	var text bytes.Buffer
	if err := json.Compact(&text, doc); err != nil {
		return "", fmt.Errorf("write profile %s: %w", id, eventlog.ErrProfileInvalid)
	}
	sum := sha256.Sum256(text.Bytes())
	etag = `"` + hex.EncodeToString(sum[:16]) + `"`
	err = s.write(ctx, func(tx *transaction) error {
		if err := tx.matchProfile(id, ifMatch); err != nil {
			return fmt.Errorf("write profile %s: %w", id, err)
		}
		if _, err := tx.exec(tx.w.writeProfile, id, etag, text.String()); err != nil {
			return fmt.Errorf("write profile %s: %w", id, err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return etag, nil
}

// DeleteProfile deletes a profile; one that is not there is no error.
func (s *Store) DeleteProfile(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *transaction) error {
		if _, err := tx.exec(tx.w.deleteProfile, id); err != nil {
			return fmt.Errorf("delete profile %s: %w", id, err)
		}
		return nil
	})
}

func (t *transaction) matchProfile(id, ifMatch string) error {
	if ifMatch == "" {
		return nil
	}
	var etag string
	err := t.row(t.w.readETag, id).Scan(&etag)
	if errors.Is(err, sql.ErrNoRows) || err == nil && ifMatch != "*" && ifMatch != etag {
		return eventlog.ErrProfileChanged
	}
	return err
}
