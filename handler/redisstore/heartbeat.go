package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// beatItem is one beat on its way to Redis and back.
type beatItem struct {
	redisconn.Request
	beat      presence.Beat
	partition int

	// What the scripts get, passed by pointer.
	userKey, leaseKey, seq   string
	groups, meta             string
	ttlSeconds, graceSeconds int64
	renewalArg

	renewed bool // renew.lua did it
	outcome presence.BeatOutcome
}

// renewalArg is what renew.lua gets of a beat: when it was received, and where the beat is not the usual one the rest,
// with commas between.
type renewalArg struct {
	at      int64
	special string
	text    [96]byte // room for most texts
}

// MarshalBinary returns the argument.
func (a *renewalArg) MarshalBinary() ([]byte, error) {
	text := strconv.AppendInt(a.text[:0], a.at, 10)
	if a.special != "" {
		text = append(append(text, ','), a.special...)
	}
	return text, nil
}

var beatItems = sync.Pool{New: func() any { return new(beatItem) }}

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
		items[i].prepare(s)
		pointers[i] = &items[i]
	}
	for slice := range slices.Chunk(pointers, beatsATurn) {
		err := s.client.Through(ctx, redisconn.Bulk, func() error {
			s.applyBeats(ctx, slice)
			return firstErr(slice)
		})
		if err != nil {
			return nil, err
		}
	}
	for i := range items {
		outcomes[i] = items[i].outcome
	}
	return outcomes, nil
}

// firstErr returns the first fault of the items.
func firstErr[T redisconn.Item](items []T) error {
	for _, it := range items {
		if err := it.Waiter().Err; err != nil {
			return err
		}
	}
	return nil
}

// heartbeat applies one beat by way of the lane.
func (s *Store) heartbeat(ctx context.Context, b *presence.Beat) (presence.BeatOutcome, error) {
	it := beatItems.Get().(*beatItem)
	*it = beatItem{Request: it.Again(ctx), beat: *b}
	it.prepare(s)
	handled, err := s.beats.Share(it)
	if !handled {
		return presence.BeatOutcome{}, err // the lane may have the item still, so it is not used again
	}
	outcome := it.outcome
	beatItems.Put(it)
	return outcome, err
}

// flushBeats is what the lane does.
func (s *Store) flushBeats(ctx context.Context, items []*beatItem) error {
	s.applyBeats(ctx, items)
	return nil // each item has its own error
}

// applyBeats applies the beats of the items, in order for each user: first renew.lua, which does the usual
// case, then heartbeat.lua for what is left. A beat with an error may have been applied.
func (s *Store) applyBeats(ctx context.Context, items []*beatItem) {
	var full map[string]bool // users of whom a beat says more than that they live: no later one may overtake it
	for _, it := range items {
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
		if !it.renewed && it.Err == nil {
			it.Err = failed[it.partition]
		}
		return !it.renewed && it.Err == nil
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

// prepare makes the scripts' arguments from the beat, but for its date. The caller of the lane does it, so that Redis does
// not wait for it.
func (it *beatItem) prepare(s *Store) {
	b := &it.beat
	it.partition = s.keys.partition(b.User)
	it.userKey = s.keys.user(it.partition, b.User)
	it.ttlSeconds, it.graceSeconds = int64(*b.TTL/time.Second), int64(b.Grace/time.Second)
	it.seq, it.groups, it.meta = seqArg(b.Seq), groupsArg(b.Groups), string(b.Meta)
	it.special = ""
	if *b.TTL != presence.DefaultTTL || b.Session != presence.DefaultSession || b.Grace != 0 || it.seq != "" {
		it.special = strings.Join([]string{
			unless(*b.TTL == presence.DefaultTTL, strconv.FormatInt(it.ttlSeconds, 10)), unless(b.Session == presence.DefaultSession, b.Session),
			unless(b.Grace == 0, strconv.FormatInt(it.graceSeconds, 10)), it.seq,
		}, ",")
	}
}

// unless returns what a script gets for a value: "" for the usual one.
func unless(usual bool, value string) string {
	if usual {
		return ""
	}
	return value
}

// renewal is a call of renew.lua, with the chunks in it.
type renewal struct {
	*redisconn.Call
	*redisconn.Dating
	chunks []chunk[*beatItem]
}

// renewals makes the calls of renew.lua: full ones that go over the partitions together, or one for each chunk.
func (s *Store) renewals(chunks []chunk[*beatItem], together bool) []renewal {
	if together {
		chunks = slices.Clone(chunks) // they are cut where a call is full
	}
	var all []renewal
	for len(chunks) > 0 {
		r, beats := renewal{}, 0
		for len(chunks) > 0 && beats < maxItems && (together || beats == 0) {
			ch := chunks[0]
			if room := maxItems - beats; len(ch.items) > room {
				chunks[0].items, ch.items = ch.items[room:], ch.items[:room]
			} else {
				chunks = chunks[1:]
			}
			r.chunks = append(r.chunks, ch)
			beats += len(ch.items)
		}
		s.renewal(&r, beats)
		all = append(all, r)
	}
	return all
}

// renewal dates the beats of a renewal and makes its call.
func (s *Store) renewal(r *renewal, beats int) {
	r.Dating = s.clockOf(r.chunks[0].partition).Dating()
	for _, ch := range r.chunks {
		for _, it := range ch.items {
			it.at = r.Received(it.beat.At, it.beat.Enqueued)
		}
	}
	r.Call = s.renewalCall(r.chunks, beats, r.Dating)
}

// renewalCall makes the call of renew.lua for so many beats; moved is by how many ms their dates must be moved.
func (s *Store) renewalCall(chunks []chunk[*beatItem], beats int, moved any) *redisconn.Call {
	c := &redisconn.Call{Script: renewScript, Keys: make([]any, 0, 2*len(chunks)+beats), Args: make([]any, 0, 3+len(chunks)+beats)}
	c.Args = append(c.Args, s.args[1], moved, len(chunks))
	for _, ch := range chunks {
		c.Keys = append(c.Keys, s.shared[ch.partition][:2]...)
		c.Args = append(c.Args, len(ch.items))
	}
	for _, ch := range chunks {
		for _, it := range ch.items {
			c.Keys = append(c.Keys, &it.userKey)
			c.Args = append(c.Args, &it.renewalArg)
		}
	}
	return c
}

// renew runs renew.lua and marks the items that it did. It returns the partitions where it failed, with the fault.
func (s *Store) renew(ctx context.Context, items []*beatItem) (failed map[int]error) {
	chunks := chunksOf(items, s.keys.partitions, func(it *beatItem) int { return it.partition })
	renewals := s.renewals(chunks, s.client.Together())
	s.runRenewals(ctx, renewals)
	if slices.ContainsFunc(renewals, func(r renewal) bool { return redis.HasErrorPrefix(r.Err, "CROSSSLOT") }) {
		// One address, and a cluster behind it. Nothing was renewed: such a call is refused before it is run.
		renewals = s.renewals(chunks, false)
		s.runRenewals(ctx, renewals)
	}
	for _, r := range renewals {
		if r.Err == nil {
			r.Err = r.read()
		}
		if r.Err == nil {
			continue
		}
		if failed == nil {
			failed = map[int]error{}
		}
		for _, ch := range r.chunks {
			failed[ch.partition] = fmt.Errorf("renew %d sessions: %w", len(ch.items), r.Err)
		}
	}
	return failed
}

func (s *Store) runRenewals(ctx context.Context, renewals []renewal) {
	calls := make([]*redisconn.Call, len(renewals))
	for i, r := range renewals {
		calls[i] = r.Call
	}
	_ = s.run(ctx, calls...) // each call has its own error
}

// read reads renew.lua's answer.
func (r renewal) read() error {
	rest, err := r.Cmd.Text()
	if err != nil {
		return err
	}
	want := 1 + len(r.chunks)
	for _, ch := range r.chunks {
		want += len(ch.items)
	}
	if lines := 1 + strings.Count(rest, "\n"); lines != want {
		return fmt.Errorf("%d lines of answer instead of %d", lines, want)
	}
	line := func() (text string) {
		text, rest, _ = strings.Cut(rest, "\n")
		return text
	}
	n := numbers{}
	now := n.parse(line(), 0)
	for _, ch := range r.chunks {
		ahead := n.parse(line(), 0)
		for _, it := range ch.items {
			text := line()
			if text == "" {
				continue
			}
			epoch, seq, _ := strings.Cut(text, ",")
			it.outcome = presence.BeatOutcome{
				Change: presence.ChangeRenewed, Status: presence.Online, Epoch: n.parse(epoch, 0), ExpiresAt: time.UnixMilli(r.Applied(it.at, now) + ahead + (it.ttlSeconds+it.graceSeconds)*1000).UTC(),
			}
			if seq != "" {
				last := n.parse(seq, 0)
				it.outcome.Seq = &last
			}
			if it.renewed = !n.bad; n.bad {
				return fmt.Errorf("a number cannot be read in the answer %q", text)
			}
		}
	}
	if n.bad {
		return errors.New("the times in the answer cannot be read")
	}
	r.Learn(now)
	return nil
}

// beat runs heartbeat.lua.
func (s *Store) beat(ctx context.Context, items []*beatItem) {
	chunks := chunksOf(items, s.keys.partitions, func(it *beatItem) int { return it.partition })
	calls := make([]*redisconn.Call, len(chunks))
	for n, ch := range chunks {
		c := s.newDatedCall(heartbeatScript, ch.partition, len(ch.items), 9)
		for _, it := range ch.items {
			it.at = c.Dating.Received(it.beat.At, it.beat.Enqueued)
			it.leaseKey = s.keys.lease(it.partition, it.beat.User, it.beat.Session)
			c.Keys = append(c.Keys, &it.userKey, &it.leaseKey)
			c.Args = append(c.Args, &it.beat.User, &it.beat.Session, &it.ttlSeconds, &it.graceSeconds, &it.at,
				&it.seq, &it.groups, &it.meta, &it.beat.Traceparent)
		}
		calls[n] = c
	}
	_ = s.run(ctx, calls...) // each call has its own error
	for n, ch := range chunks {
		replies, err := calls[n].DatedReplies(len(ch.items))
		for k, it := range ch.items {
			if err != nil {
				it.Err = fmt.Errorf("apply %d beats: %w", len(ch.items), err)
				continue
			}
			text, _ := replies[k].(string)
			if it.outcome, it.Err = beatOutcome(text); it.outcome.Change == presence.ChangeLater {
				s.later.refused.Add(1)
				s.later.tell("the record of a user with a heartbeat")
			}
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
