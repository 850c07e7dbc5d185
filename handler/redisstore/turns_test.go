package redisstore

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// TestEveryCallTakesATurn: with all turns taken no call reaches the server.
func TestEveryCallTakesATurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	store := b.store
	ctx := t.Context()
	b.beat(presence.Beat{User: "u"})
	o := store.Outbox("relay")
	entries, err := o.Next(ctx, 0, 10)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	beat := presence.Beat{User: "u", Session: "s", TTL: seconds(10)}
	leave := presence.Leave{User: "u", Session: "s"}
	calls := map[string]func(context.Context) error{
		"one beat": func(ctx context.Context) error { _, err := store.Heartbeats(ctx, []presence.Beat{beat}); return err },
		"beats": func(ctx context.Context) error {
			_, err := store.Heartbeats(ctx, []presence.Beat{beat, beat})
			return err
		},
		"one leave": func(ctx context.Context) error { _, err := store.Leaves(ctx, []presence.Leave{leave}); return err },
		"leaves": func(ctx context.Context) error {
			_, err := store.Leaves(ctx, []presence.Leave{leave, leave})
			return err
		},
		"one user": func(ctx context.Context) error { _, err := store.Users(ctx, []string{"u"}); return err },
		"users":    func(ctx context.Context) error { _, err := store.Users(ctx, []string{"u", "v"}); return err },
		"due":      func(ctx context.Context) error { _, err := store.Due(ctx, []int{0}); return err },
		"claim": func(ctx context.Context) error {
			_, err := store.Claim(ctx, []Due{{Members: []string{"u/s"}}})
			return err
		},
		"health":      store.Ping,
		"keys":        func(ctx context.Context) error { _, err := store.KeysExpired(ctx, []string{"k"}); return err },
		"listener":    func(ctx context.Context) error { return store.HoldListener(ctx, ListenerLease) },
		"next":        func(ctx context.Context) error { _, err := o.Next(ctx, 0, 1); return err },
		"own":         func(ctx context.Context) error { _, err := o.Own(ctx, 0, "", 1); return err },
		"take over":   func(ctx context.Context) error { _, _, err := o.TakeOver(ctx, 0, 0, nil, "", 1); return err },
		"lag":         func(ctx context.Context) error { _, err := o.Lag(ctx, time.Now()); return err },
		"acknowledge": func(ctx context.Context) error { return o.Acknowledge(ctx, 0, entries) },
	}
	var taken []func()
	for _, c := range []redisconn.Class{redisconn.Single, redisconn.Bulk, redisconn.Background} {
		leave, err := store.client.Enter(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, leave)
	}
	var all sync.WaitGroup
	for name, call := range calls {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if err := call(ctx); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "wait for") {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	for _, leave := range taken {
		leave()
	}
	for _, name := range []string{"one beat", "one leave", "one user", "beats", "leaves", "users", "due", "health", "lag", "acknowledge"} {
		if err := calls[name](ctx); err != nil {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
}

// TestTurnsAreBounded: no round trip has more than a turn may have, however large the call is.
func TestTurnsAreBounded(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	b := newBench(t, server.Client(), redisconn.Endpoint{URL: server.URL()}, "uc", 200)
	b.beat(presence.Beat{User: "first"})
	most := &longest{}
	client, err := b.store.client.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client.AddHook(most)
	ctx := t.Context()
	const n = 2 * presence.MaxBatch
	beats, leaves, ids, keys := make([]presence.Beat, n), make([]presence.Leave, n), make([]string, n), make([]string, n)
	for i := range n {
		ids[i], keys[i] = fmt.Sprint("u", i), fmt.Sprint("k", i)
		beats[i] = presence.Beat{User: ids[i], Session: "s", TTL: seconds(10)}
		leaves[i] = presence.Leave{User: ids[i], Session: "s"}
	}
	for name, call := range map[string]struct {
		most int
		do   func() error
	}{
		"users":    {readsATurn, func() error { _, err := b.store.Users(ctx, ids); return err }},
		"due":      {partitionsATurn, func() error { _, err := b.store.Due(ctx, b.partitions()); return err }},
		"listener": {partitionsATurn, func() error { return b.store.HoldListener(ctx, time.Minute) }},
		"keys":     {foreignATurn, func() error { _, err := b.store.KeysExpired(ctx, keys); return err }},
		"beats":    {beatsATurn, func() error { _, err := b.store.Heartbeats(ctx, beats); return err }},
		"leaves":   {leavesATurn, func() error { _, err := b.store.Leaves(ctx, leaves); return err }},
	} {
		most.commands, most.args = 0, 0
		if err := call.do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if most.commands == 0 || most.commands > call.most || most.args > 11*call.most+8*call.most {
			t.Errorf("%s: %d commands with %d arguments in one round trip", name, most.commands, most.args)
		}
	}
}

// longest is a hook that tells what the longest round trip had.
type longest struct{ commands, args int }

func (l *longest) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (l *longest) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (l *longest) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		args := 0
		for _, cmd := range cmds {
			args += len(cmd.Args())
		}
		l.commands, l.args = max(l.commands, len(cmds)), max(l.args, args)
		return next(ctx, cmds)
	}
}
