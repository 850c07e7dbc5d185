package sqlitestore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
	"userconnectivity/handler/sqlitestore"
)

// forbidden is a folder that nobody can make, whatever user the test runs as.
func forbidden(t *testing.T) string {
	t.Helper()
	dir := "/sys/user-connectivity"
	if os.Mkdir(dir, 0o700) == nil {
		_ = os.Remove(dir)
		t.Fatal("a folder can be made in /sys")
	}
	return dir
}

// TestApplyThatIsGivenUp: a caller that does not wait any more shares nothing with the writer (go test -race).
func TestApplyThatIsGivenUp(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "events.db"))
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	gaveUp := 0
	for n := range 1000 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+n%200)*time.Microsecond)
		if _, err := s.Apply(ctx, eventlogtest.Online("ann", n+1)); err != nil {
			gaveUp++
		}
		cancel()
	}
	if applied, err := s.Apply(t.Context(), eventlogtest.Online("ann", 2000)); !applied || err != nil || gaveUp == 0 {
		t.Errorf("the last apply: %v, %v; %d were given up", applied, err, gaveUp)
	}
}

// TestMembersOfOthersStay: names that another version or another program added outlive every write, and numbers keep
// their digits. What cannot be read holds up no other event.
func TestMembersOfOthersStay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	s := open(t, path)
	e, other := eventlogtest.Online("ada", 1), eventlogtest.Online("bob", 1)
	e.Meta = []byte(`{"n":1.0e309}`)
	mustWrite(t, s, eventlogtest.Sent(e), eventlogtest.Sent(other))
	if _, err := s.Apply(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	db := raw(t, path)
	for _, table := range []string{"events", "users"} {
		if _, err := db.Exec(`UPDATE ` + table + ` SET document = '{"away":{"since":2026.0},' || substr(document, 2)`); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Exec(`UPDATE events SET document = replace(document, '"status":"detected","at"', '"by":"auditor","status":"detected","at"')`); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, eventlogtest.Handled(e))
	if applied, err := s.Apply(t.Context(), eventlogtest.Offline("ada", 2)); !applied || err != nil {
		t.Fatal(applied, err)
	}
	stored := func(table, id string) (text string) {
		t.Helper()
		if err := db.QueryRow("SELECT document FROM "+table+" WHERE id = ?", id).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	event, user := stored("events", e.ID), stored("users", "ada")
	for _, part := range []string{`"away":{"since":2026.0}`, `"by":"auditor"`, `{"n":1.0e309}`, `"status":"done"`} {
		if !strings.Contains(event, part) {
			t.Errorf("the event has no %s: %s", part, event)
		}
	}
	if !strings.Contains(user, `"away":{"since":2026.0}`) || !strings.Contains(user, `"status":"offline"`) {
		t.Errorf("users record: %s", user)
	}

	if _, err := db.Exec(`UPDATE events SET document = '{"history":"v3"}' WHERE id = ?`, e.ID); err != nil {
		t.Fatal(err)
	}
	var refused *eventlog.RefusedError
	err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Handled(e), eventlogtest.Handled(other)})
	if !errors.As(err, &refused) || len(refused.Events) != 1 || refused.Events[0].ID != e.ID {
		t.Errorf("write to a record that cannot be read: %v", err)
	}
	if r, err := s.Event(t.Context(), other.ID); err != nil || r.Status() != eventlog.Done {
		t.Errorf("the other event: %v, %v", r.Status(), err)
	}
}

// TestFileThatCannotBeWritten: the store says so, and the embedded log does without it.
func TestFileThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(forbidden(t), "events.db"))
	e := eventlogtest.Online("ada", 1)
	err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)})
	if !errors.Is(err, eventlog.ErrUnwritable) || errors.Is(err, eventlog.ErrUnavailable) || !strings.Contains(err.Error(), "DATA_DIR") {
		t.Fatalf("write: %v, want ErrUnwritable and what to do", err)
	}
	log := sqlitestore.NewEmbedded(s, false)
	if !log.Complete() || len(log.Warnings()) != 0 {
		t.Errorf("before the first write: %v", log.Warnings())
	}
	if err := log.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e), eventlogtest.Sent(eventlogtest.Online("bob", 1))}); err != nil {
		t.Error(err)
	}
	if applied, err := log.Apply(t.Context(), e); applied || err != nil {
		t.Errorf("apply: %v, %v", applied, err)
	}
	if _, known, err := log.User(t.Context(), "ada"); known || err != nil {
		t.Errorf("user: %v, %v", known, err)
	}
	if _, err := log.Event(t.Context(), e.ID); !errors.Is(err, eventlog.ErrNotFound) {
		t.Errorf("event: %v", err)
	}
	if page, err := log.UserEvents(t.Context(), "ada", 10, ""); len(page.Records) != 0 || err != nil {
		t.Errorf("events: %v, %v", page, err)
	}
	if w := log.Warnings(); log.Complete() || log.Unlogged() != 2 || len(w) != 1 || !strings.Contains(w[0], "2 updates of events were not logged") {
		t.Errorf("%d unlogged, warnings %v", log.Unlogged(), w)
	}
	if err := log.Ping(t.Context()); !errors.Is(err, eventlog.ErrUnwritable) {
		t.Errorf("ping: %v", err)
	}
}

// TestFault that may pass is an error of the embedded log, too: nothing is skipped then.
func TestFaultOfTheEmbeddedLog(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "folder")
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log := sqlitestore.NewEmbedded(open(t, filepath.Join(folder, "events.db")), false)
	if err := log.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Online("ada", 1))}); !errors.Is(err, eventlog.ErrUnavailable) || log.Unlogged() != 0 {
		t.Errorf("write: %v, %d unlogged", err, log.Unlogged())
	}
}

// TestFallback is used where the usual place cannot be written, and told.
func TestFallback(t *testing.T) {
	t.Parallel()
	usual, spare := filepath.Join(forbidden(t), "events.db"), filepath.Join(t.TempDir(), "spare", "events.db")
	for _, perInstance := range []bool{false, true} {
		log := sqlitestore.NewEmbedded(open(t, usual, sqlitestore.WithFallback(spare)), perInstance)
		if err := log.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Online("ada", 1))}); err != nil {
			t.Fatal(err)
		}
		if path, meant := log.Path(); path != spare || meant != usual {
			t.Errorf("path %s, meant %s", path, meant)
		}
		if w := strings.Join(log.Warnings(), "\n"); !strings.Contains(w, "the event log is in "+spare) || strings.Contains(w, "this instance alone") != perInstance || log.Complete() == perInstance {
			t.Errorf("warnings: %s", w)
		}
	}
	both := open(t, usual, sqlitestore.WithFallback(filepath.Join(forbidden(t), "spare", "events.db")))
	if err := both.Ping(t.Context()); !errors.Is(err, eventlog.ErrUnwritable) {
		t.Errorf("ping where neither can be written: %v", err)
	}
	if path, _ := both.Path(); path != usual {
		t.Errorf("path %s", path)
	}
}

var _ eventlogtest.Store = (*sqlitestore.Embedded)(nil)

// TestEmbeddedConformance: with a file it is a store as any other.
func TestEmbeddedConformance(t *testing.T) {
	t.Parallel()
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		return sqlitestore.NewEmbedded(open(t, filepath.Join(t.TempDir(), "events.db")), false)
	})
}
