package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"userconnectivity/handler/presence"
)

// bulkSlice is how many beats of a bulk call go in one round trip, so that single beats beside it wait for
// no more than a few milliseconds.
const bulkSlice = 400

// beatItem is one beat on its way to Redis and back.
type beatItem struct {
	ctx       context.Context //nolint:containedctx // the lane drops items whose request has ended
	beat      presence.Beat
	partition int

	// What the scripts get, passed by pointer.
	userKey, leaseKey, name, member string
	ttl, grace, seq, groups, meta   string
	ttlSeconds, graceSeconds        int64
	age, left                       int64

	renewed bool // renew.lua did it
	outcome presence.BeatOutcome
	err     error
	done    chan struct{}
}

var beatItems = sync.Pool{New: func() any { return &beatItem{done: make(chan struct{}, 1)} }}

// Heartbeats applies beats in order. A single one shares its round trip with those of other requests; the
// beats of a bulk go in round trips of their own, a few hundred at a time.
func (s *Store) Heartbeats(ctx context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	outcomes := make([]presence.BeatOutcome, len(beats))
	if len(beats) == 1 {
		var err error
		outcomes[0], err = s.heartbeat(ctx, &beats[0])
		return outcomes, err
	}
	items := make([]beatItem, len(beats))
	pointers := make([]*beatItem, len(beats))
	for i := range items {
		items[i].beat = beats[i]
		pointers[i] = &items[i]
	}
	for from := 0; from < len(items); from += bulkSlice {
		slice := pointers[from:min(from+bulkSlice, len(items))]
		if err := s.bulk(ctx, func() error {
			s.applyBeats(ctx, slice)
			return firstErr(slice)
		}); err != nil {
			return nil, err
		}
	}
	for i := range items {
		outcomes[i] = items[i].outcome
	}
	return outcomes, nil
}

func firstErr(items []*beatItem) error {
	for _, it := range items {
		if it.err != nil {
			return it.err
		}
	}
	return nil
}

// heartbeat applies one beat by way of the lane.
func (s *Store) heartbeat(ctx context.Context, b *presence.Beat) (presence.BeatOutcome, error) {
	if err := s.client.ready(); err != nil {
		return presence.BeatOutcome{}, err
	}
	item := beatItems.Get().(*beatItem)
	*item = beatItem{ctx: ctx, beat: *b, done: item.done}
	if !s.beats.put(item) {
		beatItems.Put(item)
		return presence.BeatOutcome{}, errQueueFull
	}
	select {
	case <-item.done:
		outcome, err := item.outcome, item.err
		beatItems.Put(item)
		return outcome, err
	case <-ctx.Done(): // the lane still has the item, so it is not used again
		return presence.BeatOutcome{}, unavailable(fmt.Errorf("wait for Redis: %w", ctx.Err()))
	case <-s.beats.ended:
		return presence.BeatOutcome{}, errLaneEnded
	}
}

// flushBeats is the lane's flush.
func (s *Store) flushBeats(items []*beatItem) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	live := items[:0]
	for _, it := range items {
		if it.err = it.ctx.Err(); it.err != nil {
			it.done <- struct{}{}
			continue
		}
		live = append(live, it)
	}
	if err := guarded(func() error {
		s.applyBeats(ctx, live)
		return nil
	}); err != nil {
		for _, it := range live {
			it.err = err
		}
	}
	for _, it := range live {
		it.done <- struct{}{}
	}
}

// applyBeats applies the beats of the items, in order for each user: first renew.lua, which does the usual
// case, then heartbeat.lua for what is left. A beat with an error may have been applied.
func (s *Store) applyBeats(ctx context.Context, items []*beatItem) {
	now := time.Now()        // one for all, so that beats of one instant have one age
	var full map[string]bool // users of whom a beat says more than that they live: no later one may overtake it
	for _, it := range items {
		it.prepare(s, now)
		if it.groups != keepGroups || it.meta != "" {
			if full == nil {
				full = map[string]bool{}
			}
			full[it.userKey] = true
		}
	}
	plain := items
	if len(full) > 0 {
		plain = only(items, func(it *beatItem) bool { return !full[it.userKey] })
	}
	failed := s.renew(ctx, plain)
	s.beat(ctx, only(items, func(it *beatItem) bool {
		if !it.renewed && it.err == nil {
			it.err = failed[it.partition]
		}
		return !it.renewed && it.err == nil
	}))
}

// only returns the items that are wanted.
func only(items []*beatItem, wanted func(*beatItem) bool) (some []*beatItem) {
	for _, it := range items {
		if wanted(it) {
			some = append(some, it)
		}
	}
	return some
}

// prepare makes the script's arguments from the beat.
func (it *beatItem) prepare(s *Store, now time.Time) {
	b := &it.beat
	it.partition = s.keys.partition(b.User)
	it.userKey = s.keys.user(it.partition, b.User)
	it.leaseKey = s.keys.lease(it.partition, b.User, b.Session)
	it.member = it.leaseKey[len(it.leaseKey)-len(b.User)-1-len(b.Session):]
	if it.name = b.Session; it.name == presence.DefaultSession {
		it.name = ""
	}
	it.ttlSeconds, it.graceSeconds = int64(*b.TTL/time.Second), int64(b.Grace/time.Second)
	if *b.TTL != presence.DefaultTTL {
		it.ttl = strconv.FormatInt(it.ttlSeconds, 10)
	}
	if it.graceSeconds != 0 {
		it.grace = strconv.FormatInt(it.graceSeconds, 10)
	}
	it.age = s.age(now, b.At)
	it.left = (it.ttlSeconds+it.graceSeconds)*1000 - it.age
	it.seq, it.groups, it.meta = seqArg(b.Seq), groupsArg(b.Groups), string(b.Meta)
}

// renew runs renew.lua and marks the items that it did. It returns the partitions where it failed, with the fault.
func (s *Store) renew(ctx context.Context, items []*beatItem) (failed map[int]error) {
	chunks := chunksOf(items, func(it *beatItem) int { return it.partition })
	calls := make([]*call, len(chunks))
	for n, ch := range chunks {
		c := s.newCall(renewScript, ch.partition, len(ch.items), 7)
		for _, it := range ch.items {
			c.keys = append(c.keys, &it.userKey, &it.leaseKey)
			c.args = append(c.args, &it.name, &it.member, &it.ttl, &it.grace, &it.age, &it.left, &it.seq)
		}
		calls[n] = c
	}
	_ = s.run(ctx, calls...) // each call has its own error
	for n, ch := range chunks {
		replies, err := calls[n].replies(len(ch.items))
		if err != nil {
			if failed == nil {
				failed = map[int]error{}
			}
			failed[ch.partition] = fmt.Errorf("renew %d sessions: %w", len(ch.items), err)
			continue
		}
		for k, it := range ch.items {
			if text, _ := replies[k].(string); text != "" {
				it.outcome, it.err = beatOutcome(renewedPrefix + text)
				it.renewed = it.err == nil
			}
		}
	}
	return failed
}

// renewedPrefix makes an answer of renew.lua one of heartbeat.lua.
const renewedPrefix = string(presence.ChangeRenewed) + ",1,"

// beat runs heartbeat.lua.
func (s *Store) beat(ctx context.Context, items []*beatItem) {
	now := time.Now()
	chunks := chunksOf(items, func(it *beatItem) int { return it.partition })
	calls := make([]*call, len(chunks))
	for n, ch := range chunks {
		c := s.newCall(heartbeatScript, ch.partition, len(ch.items), 9)
		for _, it := range ch.items {
			it.age = s.age(now, it.beat.At) // it has grown since renew.lua
			c.keys = append(c.keys, &it.userKey, &it.leaseKey)
			c.args = append(c.args, &it.beat.User, &it.beat.Session, &it.ttlSeconds, &it.graceSeconds, &it.age,
				&it.seq, &it.groups, &it.meta, &it.beat.Traceparent)
		}
		calls[n] = c
	}
	_ = s.run(ctx, calls...) // each call has its own error
	for n, ch := range chunks {
		replies, err := calls[n].replies(len(ch.items))
		for k, it := range ch.items {
			if err != nil {
				it.err = fmt.Errorf("apply %d beats: %w", len(ch.items), err)
				continue
			}
			text, _ := replies[k].(string)
			it.outcome, it.err = beatOutcome(text)
		}
	}
}

// beatOutcome reads one of lua/heartbeat.lua's answers: change, online, epoch, due, seq.
func beatOutcome(text string) (o presence.BeatOutcome, err error) {
	change, rest, _ := strings.Cut(text, ",")
	online, rest, _ := strings.Cut(rest, ",")
	epoch, rest, _ := strings.Cut(rest, ",")
	due, seq, ok := strings.Cut(rest, ",")
	if !ok {
		return o, fmt.Errorf("unexpected answer %q", text)
	}
	o.Change, o.Status = presence.Change(change), presence.Offline
	if online == "1" {
		o.Status = presence.Online
	}
	n := numbers{}
	o.Epoch, o.ExpiresAt = n.parse(epoch, 0), n.time(due)
	if seq != "" {
		last := n.parse(seq, 0)
		o.Seq = &last
	}
	if n.bad {
		return o, fmt.Errorf("a number cannot be read in the answer %q", text)
	}
	return o, nil
}

// keepGroups is what stands for a beat that names no groups. It is no id.
const keepGroups = "*"

func groupsArg(groups []string) string {
	if groups == nil {
		return keepGroups
	}
	return strings.Join(groups, " ")
}

func seqArg(seq *int64) string {
	if seq == nil {
		return ""
	}
	return strconv.FormatInt(*seq, 10)
}
