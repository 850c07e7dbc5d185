package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/centrifugal/centrifuge"
)

// centrifugePeer is centrifuge's presence on Redis, in both forms that it has: the presence manager, and a keyed map
// whose entries are kept alive and cleaned up with an entry in a stream.
type centrifugePeer struct {
	addr     string
	node     *centrifuge.Node
	shard    *centrifuge.RedisShard
	presence *centrifuge.RedisPresenceManager
	kept     *centrifuge.RedisMapBroker // never cleans up
	users    int
	streams  int // entries that a stream holds
}

const (
	// presenceTTL holds an entry while beats are measured, dueTTL one that is to be due soon.
	presenceTTL = time.Hour
	dueTTL      = 5 * time.Second
	// cleanUpEvery keeps the clean-up going without a pause, cleanUpBatch is as many entries as one of our claims takes.
	cleanUpEvery = time.Millisecond
	cleanUpBatch = 200
)

// connect makes the clients on first use.
func (c *centrifugePeer) connect() (err error) {
	if c.node != nil {
		return nil
	}
	options := func(ttl time.Duration) centrifuge.MapChannelOptions {
		return centrifuge.MapChannelOptions{
			Mode: centrifuge.MapModeRecoverable, KeyTTL: ttl, StreamSize: max(c.streams, 100), StreamTTL: time.Hour, MetaTTL: 10 * time.Hour,
		}
	}
	node, err := centrifuge.New(centrifuge.Config{Map: centrifuge.MapConfig{
		GetMapChannelOptions: func(channel string) centrifuge.MapChannelOptions {
			if channel[0] == 'd' {
				return options(dueTTL)
			}
			return options(presenceTTL)
		},
	}})
	if err != nil {
		return err
	}
	if c.shard, err = centrifuge.NewRedisShard(node, centrifuge.RedisShardConfig{Address: c.addr}); err != nil {
		return err
	}
	c.presence, err = centrifuge.NewRedisPresenceManager(node, centrifuge.RedisPresenceManagerConfig{
		Shards: []*centrifuge.RedisShard{c.shard}, PresenceTTL: presenceTTL,
	})
	if err != nil {
		return err
	}
	if c.kept, err = c.broker(node, -1); err != nil {
		return err
	}
	c.node = node
	return nil
}

func (c *centrifugePeer) broker(node *centrifuge.Node, every time.Duration) (*centrifuge.RedisMapBroker, error) {
	return centrifuge.NewRedisMapBroker(node, centrifuge.RedisMapBrokerConfig{
		Shards: []*centrifuge.RedisShard{c.shard}, SkipPubSub: true, CleanupInterval: every, CleanupBatchSize: cleanUpBatch,
	})
}

func (c *centrifugePeer) close() {
	if c.node != nil {
		_ = c.node.Shutdown(context.Background()) // the process ends
	}
}

func (c *centrifugePeer) seedPresence(_ context.Context, n int) (int64, time.Duration, error) {
	if err := c.connect(); err != nil {
		return 0, 0, err
	}
	c.users = n
	return each(n, c.present)
}

func (c *centrifugePeer) addPresence(_ context.Context, millis int) (int64, time.Duration, error) {
	if c.users == 0 {
		return 0, 0, errors.New("presence-seed comes first")
	}
	return again(c.users, millis, c.present)
}

func (c *centrifugePeer) present(user int) error {
	id := userID(user)
	return c.presence.AddPresence(channelOf(user), id, &centrifuge.ClientInfo{ClientID: id, UserID: id})
}

func (c *centrifugePeer) seedMap(ctx context.Context, n int) (int64, time.Duration, error) {
	if err := c.connect(); err != nil {
		return 0, 0, err
	}
	c.users = n
	return each(n, func(user int) error { return c.publish(ctx, channelOf(user), user, false) })
}

func (c *centrifugePeer) keepAlive(ctx context.Context, millis int) (int64, time.Duration, error) {
	if c.users == 0 {
		return 0, 0, errors.New("map-seed comes first")
	}
	return again(c.users, millis, func(user int) error { return c.publish(ctx, channelOf(user), user, true) })
}

// publish adds a user's entry, or moves its deadline where it is there: suppressed says which is expected.
func (c *centrifugePeer) publish(ctx context.Context, channel string, user int, suppressed bool) error {
	r, err := c.kept.Publish(ctx, channel, userID(user), centrifuge.MapPublishOptions{
		KeyMode: centrifuge.KeyModeIfNew, RefreshTTLOnSuppress: true,
	})
	if err != nil {
		return err
	}
	if r.Suppressed != suppressed {
		return fmt.Errorf("entry of %s: suppressed %v (%s)", userID(user), r.Suppressed, r.SuppressReason)
	}
	return nil
}

// makeDue writes n entries and waits until all of them are due.
func (c *centrifugePeer) makeDue(ctx context.Context, n int) (count int64, took time.Duration, err error) {
	c.streams = n
	if err := c.connect(); err != nil {
		return 0, 0, err
	}
	count, took, err = each(n, func(user int) error { return c.publish(ctx, "due"+channelOf(user), user, false) })
	if err == nil {
		time.Sleep(dueTTL + 100*time.Millisecond)
	}
	return count, took, err
}

// cleanUp measures how long the clean-up takes for n entries that are due, each with its entry in the stream.
func (c *centrifugePeer) cleanUp(ctx context.Context, n int) (int64, time.Duration, error) {
	began := time.Now()
	cleaner, err := c.broker(c.node, cleanUpEvery)
	if err != nil {
		return 0, 0, err
	}
	if err := until(ctx, func() (bool, error) {
		for i := range channels {
			s, err := c.kept.Stats(ctx, "due"+channelOf(i))
			if err != nil || s.NumKeys > 0 {
				return false, err
			}
		}
		return true, nil
	}); err != nil {
		return 0, 0, err
	}
	took := time.Since(began)
	return int64(n), took, cleaner.Close(ctx)
}
