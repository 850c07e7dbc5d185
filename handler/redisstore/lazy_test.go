package redisstore

import (
	"testing"
	"time"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// TestRecordWithALaterDeadline: a session whose score has passed is not ended while its record has a later deadline, as a
// version writes it that moves the index lazily. The score is mended instead, and the session ends at its true deadline.
func TestRecordWithALaterDeadline(t *testing.T) {
	t.Parallel()
	for name, beat := range map[string]presence.Beat{
		"usual":    {User: "ann", Session: presence.DefaultSession, TTL: new(presence.DefaultTTL)},
		"long":     {User: "ann", Session: "tab", TTL: new(time.Minute), Grace: 10 * time.Second, Meta: []byte(`{"a":1}`)},
		"two ends": {User: "ann", Session: "tab", TTL: new(time.Minute), Seq: new(int64(7))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t)
			raw := server.Client()
			t.Cleanup(func() { _ = raw.Close() })
			client := redisconn.NewClient(redisconn.Endpoint{URL: server.URL()}, "lazy", nil)
			t.Cleanup(func() { _ = client.Close() })
			s := New(client, Config{Partitions: 1, LeaseKeys: true})
			t.Cleanup(s.Close)
			if name == "two ends" { // so that its record is not the usual one
				for _, session := range []string{"one", "two"} {
					if _, err := s.Leaves(t.Context(), []presence.Leave{{User: "ann", Session: session}}); err != nil {
						t.Fatal(err)
					}
				}
			}
			outcome, err := s.Heartbeats(t.Context(), []presence.Beat{beat})
			if err != nil {
				t.Fatal(err)
			}
			due, member := s.keys.in(0, "due"), beat.User+"/"+beat.Session
			deadline := outcome[0].ExpiresAt.UnixMilli()
			if err := raw.Do(t.Context(), "zadd", due, deadline-120_000, member).Err(); err != nil {
				t.Fatal(err)
			}
			found, err := s.Due(t.Context(), []int{0})
			if err != nil || len(found) != 1 || len(found[0].Members) != 1 {
				t.Fatalf("due: %+v, %v", found, err)
			}
			claims, err := s.Claim(t.Context(), found)
			if err != nil || len(claims.Late) != 0 || claims.Lost != 1 || claims.Quarantined != 0 {
				t.Fatalf("claims: %+v, %v", claims, err)
			}
			if score := raw.ZScore(t.Context(), due, member).Val(); int64(score) != deadline {
				t.Errorf("the score is %.0f, want %d", score, deadline)
			}
			if users, err := s.Users(t.Context(), []string{"ann"}); err != nil || users[0].Status != presence.Online {
				t.Errorf("the user is %+v, %v", users[0], err)
			}
			// Let the deadline pass: the partition's clock goes on.
			if err := raw.HSet(t.Context(), s.keys.in(0, "meta"), "offset", (2 * time.Minute).Milliseconds()).Err(); err != nil {
				t.Fatal(err)
			}
			if found, err = s.Due(t.Context(), []int{0}); err != nil {
				t.Fatal(err)
			}
			if claims, err = s.Claim(t.Context(), found); err != nil || len(claims.Late) != 1 {
				t.Errorf("claims after the deadline: %+v, %v", claims, err)
			}
		})
	}
}
