package sqlitestore_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
	"userconnectivity/handler/sqlitestore"
)

// childFile names the file that a child process of a test writes to.
const childFile = "SQLITESTORE_TEST_FILE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childFile); path != "" {
		writeForEver(path, os.Args[len(os.Args)-1])
	}
	os.Exit(m.Run())
}

// writeForEver writes events of one user and prints the number of each once it is committed.
func writeForEver(path, user string) {
	s := sqlitestore.New(path)
	for n := 0; ; n++ {
		if err := s.Write(context.Background(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Offline(user, n))}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(n)
	}
}

func open(t testing.TB, path string, options ...sqlitestore.Option) *sqlitestore.Store {
	t.Helper()
	s := sqlitestore.New(path, options...)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func mustWrite(t testing.TB, s *sqlitestore.Store, updates ...eventlog.Update) {
	t.Helper()
	if err := s.Write(t.Context(), updates); err != nil {
		t.Fatalf("write: %v", err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		return open(t, filepath.Join(t.TempDir(), "folder", "events.db"))
	})
}

// TestUsersOfOthers: the users records that another version or another program wrote.
func TestUsersOfOthers(t *testing.T) {
	t.Parallel()
	eventlogtest.RunUsers(t, func(t *testing.T) (eventlogtest.Store, eventlogtest.Records) {
		return withRecords(t)
	})
}

// TestUserThatIsNoObject: a text in the file that is no JSON object is written anew with the next event, and is counted.
func TestUserThatIsNoObject(t *testing.T) {
	t.Parallel()
	for i, junk := range []string{``, `null`, `7`, `[{}]`, `{"epoch":9`, `{"epoch":1}}`, "\x00"} {
		s, records := withRecords(t)
		records.Put(t, "ada", junk)
		if u, known, err := s.User(t.Context(), "ada"); err != nil || u.ID != "ada" || u.Epoch > 1 || !known {
			t.Errorf("%q is read as %+v, known %v, %v", junk, u, known, err)
		}
		e := eventlogtest.Online("ada", i)
		if applied, err := s.Apply(t.Context(), e); !applied || err != nil {
			t.Errorf("%q: apply: %v, %v", junk, applied, err)
		}
		if u, _, err := s.User(t.Context(), "ada"); err != nil || u.Epoch != e.Epoch || len(u.Sessions) != 1 || s.Repaired() != 1 {
			t.Errorf("%q became %+v, %v; repaired %d", junk, u, err, s.Repaired())
		}
	}
}

// userRecords are the texts in the table of users.
type userRecords struct{ db *sql.DB }

func withRecords(t *testing.T) (*sqlitestore.Store, userRecords) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "events.db")
	s := open(t, path)
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return s, userRecords{db}
}

// Put writes a text.
func (r userRecords) Put(t *testing.T, user, text string) {
	t.Helper()
	if _, err := r.db.Exec("INSERT INTO users (id, document) VALUES (?, ?) ON CONFLICT DO UPDATE SET document = excluded.document", user, text); err != nil {
		t.Fatal(err)
	}
}

// Text returns a text.
func (r userRecords) Text(t *testing.T, user string) (text string) {
	t.Helper()
	if err := r.db.QueryRow("SELECT document FROM users WHERE id = ?", user).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func TestNewDoesNoIO(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "folder")
	s := sqlitestore.New(filepath.Join(folder, "events.db"))
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New made the folder: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close of a store that was never used made the folder: %v", err)
	}
}

func TestFailedOpenIsNotRemembered(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "folder")
	if err := os.WriteFile(folder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, filepath.Join(folder, "events.db"))
	e := eventlogtest.Offline("ada", 1)
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Fatalf("write where the folder is a file: %v, want ErrUnavailable", err)
	}
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, eventlogtest.Sent(e))
	if _, err := s.Event(t.Context(), e.ID); err != nil {
		t.Error(err)
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a b%20c?d#e.db") // a name that a URL would change
	e := eventlogtest.Online("ada", 1)
	s := open(t, path)
	mustWrite(t, s, eventlogtest.Handled(e))
	if _, err := s.Apply(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	etag, err := s.PutProfile(t.Context(), "p", []byte(`{"a":1}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	if r, err := s.Event(t.Context(), e.ID); err != nil || r.Status() != eventlog.Done {
		t.Errorf("event: %s, %v", r.Status(), err)
	}
	if u, known, err := s.User(t.Context(), "ada"); !known || err != nil || u.Epoch != e.Epoch {
		t.Errorf("user: %+v, %v, %v", u, known, err)
	}
	if doc, again, err := s.Profile(t.Context(), "p"); string(doc) != `{"a":1}` || again != etag || err != nil {
		t.Errorf("profile: %s, etag %s, want %s; %v", doc, again, etag, err)
	}
}

// TestKilledProcess kills a process in the middle of its writes, several times over, while another one has the
// file open: everything that was reported as written is there, and the next process writes at once.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	for round := range 4 {
		user := fmt.Sprint("user-", round)
		child := exec.Command(os.Args[0], user)
		child.Env = append(os.Environ(), childFile+"="+path)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		other := sqlitestore.New(path)
		written := -1
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscan(lines.Text(), &written); err != nil {
				t.Errorf("child printed %q", lines.Text())
			}
			if written == 20 {
				mustWrite(t, other, eventlogtest.Sent(eventlogtest.Offline("another", round)))
			}
			if written == 50 {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); err == nil {
			t.Error("the child was not killed")
		}
		if written < 50 {
			t.Fatalf("child wrote %d events", written+1)
		}
		for n := range written + 1 { // an event's id depends on user and number alone, not on the child's clock
			if _, err := other.Event(t.Context(), eventlogtest.Offline(user, n).ID); err != nil {
				t.Errorf("event %d of %d: %v", n, written, err)
			}
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	s := open(t, path)
	page, err := s.UserEvents(t.Context(), "another", 10, "")
	if err != nil || len(page.Records) != 4 {
		t.Errorf("%d events of the other process, want 4; %v", len(page.Records), err)
	}
}

// TestTwoStoresRace opens one new file several times at once and merges into the same records from all.
func TestTwoStoresRace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	const events = 100
	var group sync.WaitGroup
	for writer := range 4 {
		s := open(t, path)
		group.Go(func() {
			for n := range events {
				u := eventlogtest.Sent(eventlogtest.Offline("ada", n))
				if writer%2 == 1 {
					u = eventlogtest.Handled(u.Event)
				}
				if err := s.Write(t.Context(), []eventlog.Update{u}); err != nil {
					t.Errorf("writer %d, event %d: %v", writer, n, err)
					return
				}
			}
		})
	}
	group.Wait()
	s := open(t, path)
	for n := range events {
		r, err := s.Event(t.Context(), eventlogtest.Offline("ada", n).ID)
		if err != nil || len(r.History) != 4 || r.Status() != eventlog.Done {
			t.Errorf("event %d: %v, %v", n, r.History, err)
		}
	}
}

func TestLockedFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	e := eventlogtest.Online("ada", 1)
	s := open(t, path, sqlitestore.WithBusyTimeout(50*time.Millisecond))
	mustWrite(t, s, eventlogtest.Sent(e))

	db := raw(t, path)
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("DELETE FROM users"); err != nil { // takes the lock
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), e); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("apply to a locked file: %v, want ErrUnavailable", err)
	}
	if _, err := s.Event(t.Context(), e.ID); err != nil {
		t.Errorf("read of a locked file: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if applied, err := s.Apply(t.Context(), e); !applied || err != nil {
		t.Errorf("apply after the lock: %v, %v", applied, err)
	}
}

func TestFileOfALaterVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	if _, err := raw(t, path).Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	err := open(t, path).Ping(t.Context())
	if err == nil || !strings.Contains(err.Error(), "version 99") || errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("ping: %v, want an error that names the version and does not pass", err)
	}
}

func TestOldEventsAreForgotten(t *testing.T) {
	t.Parallel()
	const old = 1200 // more than one transaction forgets
	s := open(t, filepath.Join(t.TempDir(), "events.db"), sqlitestore.WithRetention(24*time.Hour))
	var updates []eventlog.Update
	for n := range old {
		e := eventlogtest.Offline("ada", n)
		e.DetectedAt = e.DetectedAt.Add(-25 * time.Hour)
		updates = append(updates, eventlogtest.Sent(e))
	}
	young := eventlogtest.Offline("ada", old)
	young.DetectedAt = young.DetectedAt.Add(-23 * time.Hour)
	updates = append(updates, eventlogtest.Sent(young))
	mustWrite(t, s, updates...)

	left := func() int {
		page, err := s.UserEvents(t.Context(), "ada", 2*old, "")
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Records)
	}
	before := left()
	if before <= 1 || before >= old {
		t.Errorf("%d events after the first write, want a part of the old ones to be left", before)
	}
	for n := range 3 {
		mustWrite(t, s, eventlogtest.Sent(eventlogtest.Offline("bob", n)))
	}
	if n := left(); n != 1 {
		t.Errorf("%d events are left, want the young one", n)
	}
	if _, err := s.Event(t.Context(), young.ID); err != nil {
		t.Errorf("the young event: %v", err)
	}
}

// TestOneBadCallDoesNotFailTheOthers has calls of one transaction in which the database refuses the event of one.
func TestOneBadCallDoesNotFailTheOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "events.db")
	s := open(t, path)
	mustWrite(t, s, eventlogtest.Sent(eventlogtest.Offline("first", 0)))
	db := raw(t, path)
	if _, err := db.Exec(`CREATE TRIGGER refuse BEFORE INSERT ON events WHEN new.user = 'bad' BEGIN SELECT RAISE(FAIL, 'refused'); END`); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin() // holds the writer, so that the calls gather
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("DELETE FROM users"); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	var started atomic.Int32
	for n := range 40 {
		user := "good"
		if n%10 == 3 {
			user = "bad"
		}
		group.Go(func() {
			if started.Add(1) == 40 {
				if err := tx.Rollback(); err != nil {
					t.Error(err)
				}
			}
			err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(eventlogtest.Offline(user, n))})
			if (err != nil) != (user == "bad") {
				t.Errorf("write %d of user %s: %v", n, user, err)
			}
		})
	}
	group.Wait()
	if page, err := s.UserEvents(t.Context(), "good", 100, ""); err != nil || len(page.Records) != 36 {
		t.Errorf("%d events, want 36; %v", len(page.Records), err)
	}
}

// raw opens the file as another program would.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// BenchmarkWrite measures updates a second: batches as the relay and the worker write them, from one caller
// and from several at once, and single calls.
func BenchmarkWrite(b *testing.B) {
	for _, bb := range []struct{ callers, batch int }{{1, 200}, {4, 200}, {1, 1}, {64, 1}} {
		b.Run(fmt.Sprintf("callers=%d/batch=%d", bb.callers, bb.batch), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "events.db"))
			var next atomic.Int64
			var group sync.WaitGroup
			for range bb.callers {
				group.Go(func() {
					for {
						last := int(next.Add(int64(bb.batch)))
						if last-bb.batch >= b.N {
							return
						}
						var sent, handled []eventlog.Update
						for n := last - bb.batch; n < last; n++ {
							e := eventlogtest.Online(fmt.Sprint("user-", n%5000), n)
							sent, handled = append(sent, eventlogtest.Sent(e)), append(handled, eventlogtest.Handled(e))
						}
						mustWrite(b, s, sent...)
						mustWrite(b, s, handled...)
					}
				})
			}
			group.Wait()
			b.ReportMetric(2*float64(b.N)/b.Elapsed().Seconds(), "updates/s")
		})
	}
}

// BenchmarkApply measures the users record, from 64 callers at once.
func BenchmarkApply(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "events.db"))
	var next atomic.Int64
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			for n := int(next.Add(1)); n <= b.N; n = int(next.Add(1)) {
				if _, err := s.Apply(b.Context(), eventlogtest.Online(fmt.Sprint("user-", n%5000), n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "applied/s")
}
