package redisstore

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// readItem is one look at a user's record.
type readItem struct {
	redisconn.Request
	id   string
	user *presence.User
}

// Users reads the records of users; nil for a user without one, or with a record that says no more than that
// a leave came. Of a user whose record only a later version can read it says no more than Stale. Calls for one user share
// a round trip with others; larger ones are cut into round trips of their own.
func (s *Store) Users(ctx context.Context, ids []string) ([]*presence.User, error) {
	if len(ids) == 1 {
		it := &readItem{Request: redisconn.NewRequest(ctx), id: ids[0]}
		if handled, err := s.reads.Share(it); !handled || err != nil {
			return nil, err
		}
		return []*presence.User{it.user}, nil
	}
	if err := s.client.Ready(); err != nil {
		return nil, err
	}
	users := make([]*presence.User, 0, len(ids))
	for some := range slices.Chunk(ids, readsATurn) {
		err := s.client.Through(ctx, redisconn.Bulk, func() error {
			gets, err := s.readRecords(ctx, some)
			if err != nil {
				return err
			}
			read, err := s.parseUsers(some, gets)
			users = append(users, read...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return users, nil
}

// flushReads is what the lane does.
func (s *Store) flushReads(ctx context.Context, items []*readItem) error {
	ids := make([]string, len(items))
	for i, it := range items {
		ids[i] = it.id
	}
	gets, err := s.readRecords(ctx, ids)
	if err != nil {
		return err
	}
	for i, it := range items {
		users, err := s.parseUsers(ids[i:i+1], gets[i:i+1])
		if it.Err = err; err == nil {
			it.user = users[0]
		}
	}
	return nil
}

// readRecords asks for the records of users in one round trip.
func (s *Store) readRecords(ctx context.Context, ids []string) ([]*redis.StringCmd, error) {
	client, err := s.connect(ctx)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	pipe := client.Pipeline()
	gets := make([]*redis.StringCmd, len(ids))
	for i, id := range ids {
		gets[i] = pipe.Get(ctx, s.keys.user(s.keys.partition(id), id))
	}
	redisconn.Exec(ctx, pipe)
	return gets, nil
}

func (s *Store) parseUsers(ids []string, gets []*redis.StringCmd) ([]*presence.User, error) {
	users := make([]*presence.User, len(ids))
	for i, get := range gets {
		record, err := get.Result()
		switch {
		case errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "WRONGTYPE"):
			continue
		case err != nil:
			return nil, s.client.Unavailable(err)
		}
		if laterRecord(record) {
			s.later.unread.Add(1)
			s.later.tell("a user record")
			users[i] = &presence.User{ID: ids[i], Stale: true}
			continue
		}
		// A record that cannot be read is no record, as in lua/state.lua; the next write puts it in quarantine.
		if u, ok := parseRecord(ids[i], record); ok && u.Epoch > 0 {
			users[i] = &u
		}
	}
	return users, nil
}

// parseRecord reads a user record; lua/record.lua has its form.
func parseRecord(id, record string) (u presence.User, ok bool) {
	lines := strings.Split(record, "\n")
	head, ok := strings.CutPrefix(lines[0], "a")
	fields := strings.Split(head, ",")
	if !ok || len(fields) != 1 && len(fields) < 4 {
		return u, false
	}
	fields = append(fields, "", "", "")
	n := numbers{}
	u = presence.User{ID: id, Status: presence.Offline, Epoch: n.parse(fields[0], 0), Groups: strings.Fields(fields[3])}
	if u.Epoch > 0 {
		u.Since = time.UnixMilli(u.Epoch - n.parse(fields[1], 0)).UTC()
	}
	seen := n.parse(fields[2], 0)
	for _, line := range lines[1:] {
		if line == "" || line[0] == '-' || laterLine(line) {
			continue
		}
		f := strings.SplitN(line[1:], ",", 8) // last, ttl, session, start, grace, due, seq, meta
		if line[0] != '+' && line[0] != '~' || len(f) > 2 && len(f) != 8 {
			return u, false
		}
		f = append(f, "", "", "", "", "", "", "")
		s := presence.Session{
			ID:         f[2],
			StartEpoch: u.Epoch - n.parse(f[3], 0),
			TTL:        time.Duration(n.parse(f[1], int64(presence.DefaultTTL/time.Second))) * time.Second,
			Grace:      time.Duration(n.parse(f[4], 0)) * time.Second,
		}
		if s.ID == "" {
			s.ID = presence.DefaultSession
		}
		last := u.Epoch + n.parse(f[0], 0)
		s.ExpiresAt = time.UnixMilli(last + n.parse(f[5], (s.TTL+s.Grace).Milliseconds())).UTC()
		if meta, _ := splitMeta(f[7]); meta != "" {
			s.Meta = json.RawMessage(meta)
		}
		u.Sessions = append(u.Sessions, s)
		seen = max(seen, last)
	}
	if len(u.Sessions) > 0 {
		u.Status = presence.Online
	}
	if seen > 0 {
		u.LastSeen = time.UnixMilli(seen).UTC()
	}
	return u, !n.bad
}

// numbers parses integers, remembering whether one was not.
type numbers struct{ bad bool }

func (n *numbers) parse(s string, empty int64) int64 {
	if s == "" {
		return empty
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n.bad = true
	}
	return v
}

// Ping reports whether Redis runs our scripts and fits our settings, and if not, which setting to change.
func (s *Store) Ping(ctx context.Context) error {
	c := s.newCall(dueScript, 0, 0, 2)
	c.Args = append(c.Args, 1, 0)
	if err := s.client.Through(ctx, redisconn.Background, func() error { return s.run(ctx, c) }); err != nil {
		return redisconn.Unavailable(s.client.Diagnose(err))
	}
	return nil
}
