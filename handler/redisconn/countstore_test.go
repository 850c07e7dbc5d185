package redisconn

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"testing"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// countStore keeps a count for each name in Redis. It uses a Client as packages of state do, with a call of each kind, and
// spreads its keys over some slots.
type countStore struct {
	client *Client
	slots  int
	lane   *Lane[*countItem]
}

// countItem is one name that is counted in a round trip with others.
type countItem struct {
	Request
	name string
	n    int64
}

var (
	addScript  = redis.NewScript(`local n = {} for i, key in ipairs(KEYS) do n[i] = redis.call('INCR', key) end return n`)
	lookScript = redis.NewScript(`return redis.call('EXISTS', KEYS[1])`)
)

func newCountStore(c *Client, slots int) *countStore {
	s := &countStore{client: c, slots: slots}
	s.lane = NewLane(c, func(ctx context.Context, items []*countItem) error {
		s.apply(ctx, items)
		return nil
	})
	return s
}

func (s *countStore) close() {
	ctx, cancel := context.WithTimeout(context.Background(), CommandTimeout)
	defer cancel()
	s.lane.Stop(ctx)
}

func (s *countStore) slot(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return int(h.Sum32() % uint32(s.slots))
}

func (s *countStore) key(name string) string { return fmt.Sprintf("uc{p%d}%s", s.slot(name), name) }

// names returns one of each slot.
func (s *countStore) names() []string {
	names := make([]string, s.slots)
	for n, found := 0, 0; found < len(names); n++ {
		name := fmt.Sprintf("name-%d", n)
		if p := s.slot(name); names[p] == "" {
			names[p], found = name, found+1
		}
	}
	return names
}

// add counts names up and returns their counts. One alone shares its round trip with those of other calls.
func (s *countStore) add(ctx context.Context, names ...string) ([]int64, error) {
	if len(names) == 1 {
		it := &countItem{Request: NewRequest(ctx), name: names[0]}
		if handled, err := s.lane.Share(it); !handled || err != nil {
			return nil, err
		}
		return []int64{it.n}, nil
	}
	items := make([]*countItem, len(names))
	for i, name := range names {
		items[i] = &countItem{name: name}
	}
	counted := make([]int64, len(names))
	err := s.client.Through(ctx, Bulk, func() error {
		s.apply(ctx, items)
		for i, it := range items {
			if it.Err != nil {
				return it.Err
			}
			counted[i] = it.n
		}
		return nil
	})
	return counted, err
}

func (s *countStore) apply(ctx context.Context, items []*countItem) {
	bySlot := make([][]*countItem, s.slots)
	for _, it := range items {
		p := s.slot(it.name)
		bySlot[p] = append(bySlot[p], it)
	}
	var calls []*Call
	for _, some := range bySlot {
		if len(some) == 0 {
			continue
		}
		c := &Call{Script: addScript}
		for _, it := range some {
			c.Keys = append(c.Keys, s.key(it.name))
		}
		calls = append(calls, c)
	}
	_ = s.client.Run(ctx, calls...) // each call has its own error
	for _, some := range bySlot {
		if len(some) == 0 {
			continue
		}
		counted, err := calls[0].Replies(len(some))
		calls = calls[1:]
		for i, it := range some {
			if it.Err = err; err == nil {
				it.n, _ = counted[i].(int64)
			}
		}
	}
}

// read returns the counts of names, in a turn of many commands.
func (s *countStore) read(ctx context.Context, names ...string) ([]int64, error) {
	counted := make([]int64, len(names))
	err := s.client.Through(ctx, Bulk, func() error {
		client, err := s.client.Connect(ctx)
		if err != nil {
			return err
		}
		pipe := client.Pipeline()
		gets := make([]*redis.StringCmd, len(names))
		for i, name := range names {
			gets[i] = pipe.Get(ctx, s.key(name))
		}
		Exec(ctx, pipe)
		for i, get := range gets {
			if err := get.Err(); err != nil && !errors.Is(err, redis.Nil) {
				return s.client.Unavailable(err)
			}
			if get.Err() == nil {
				if counted[i], err = get.Int64(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return counted, nil
}

// look runs a script on each slot, in the background.
func (s *countStore) look(ctx context.Context) error {
	var calls []*Call
	for _, name := range s.names() {
		calls = append(calls, &Call{Script: lookScript, Keys: []any{s.key(name)}})
	}
	return s.client.Through(ctx, Background, func() error { return s.client.Run(ctx, calls...) })
}

// ping is look, with the cure of its error.
func (s *countStore) ping(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return Unavailable(s.client.Diagnose(err))
	}
	return nil
}

// command sends a command without a script, in the background, and transact a transaction.
func (s *countStore) command(ctx context.Context) error {
	return s.background(ctx, func(c redis.UniversalClient) error { return c.Exists(ctx, s.key("u")).Err() })
}

func (s *countStore) transact(ctx context.Context) error {
	return s.background(ctx, func(c redis.UniversalClient) error {
		_, err := c.TxPipelined(ctx, func(tx redis.Pipeliner) error {
			tx.Exists(ctx, s.key("u"))
			tx.Exists(ctx, s.key("u"))
			return nil
		})
		return err
	})
}

func (s *countStore) background(ctx context.Context, do func(redis.UniversalClient) error) error {
	return s.client.Through(ctx, Background, func() error {
		client, err := s.client.Connect(ctx)
		if err != nil {
			return err
		}
		if err := do(client); err != nil {
			return Unavailable(err)
		}
		return nil
	})
}
