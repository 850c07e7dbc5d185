package redisstore

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// viewLua tells what the scripts read in user records. KEYS from 5: user records. It returns JSON.
var viewLua = statePrelude + `
local views = {}
for i = 5, #KEYS do
  local u = load(KEYS[i])
  u.seen = last_seen(u)
  if #u.live == 0 then u.live = nil end
  if #u.ended == 0 then u.ended = nil end
  views[#views + 1] = cjson.encode(u)
end
return views`

var viewScript = redis.NewScript(viewLua)

// view is a user record as the scripts see it.
type view struct {
	Epoch  int64       `json:"epoch"`
	Since  int64       `json:"since"`
	Seen   int64       `json:"seen"`
	Groups string      `json:"groups"`
	Live   []viewLive  `json:"live"`
	Ended  []viewEnded `json:"ended"`
}

type viewLive struct {
	Name    string `json:"name"`
	Start   int64  `json:"start"`
	TTL     int64  `json:"ttl"`
	Grace   int64  `json:"grace"`
	Last    int64  `json:"last"`
	Due     int64  `json:"due"`
	Seq     string `json:"seq"`
	Meta    string `json:"meta"`
	Leaving bool   `json:"leaving"`
}

type viewEnded struct {
	Name  string `json:"name"`
	Last  int64  `json:"last"`
	Seq   string `json:"seq"`
	Ended int64  `json:"ended"`
}

// views asks the scripts what they read in the records of users of partition 0.
func views(ctx context.Context, s *Store, users []string) ([]view, error) {
	c := s.newCall(viewScript, 0, len(users), 0)
	for _, u := range users {
		c.Keys = append(c.Keys, s.keys.user(0, u))
	}
	if err := s.run(ctx, c); err != nil {
		return nil, err
	}
	texts, err := c.Cmd.StringSlice()
	if err != nil {
		return nil, err
	}
	all := make([]view, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &all[i]); err != nil {
			return nil, fmt.Errorf("read the view %s: %w", text, err)
		}
	}
	return all, nil
}

// view is what the scripts should see of a user.
func (m *model) view(id string, now int64) view {
	u := m.user(id, now)
	v := view{Epoch: u.epoch, Seen: u.seen, Groups: strings.Join(u.groups, " ")}
	if u.epoch > 0 {
		v.Since = u.since
	}
	for _, s := range u.live {
		v.Live = append(v.Live, viewLive{s.name, s.start, s.ttl / 1000, s.grace / 1000, s.last, s.due, seqText(s.seq), s.meta, s.leaving})
	}
	for _, e := range u.ends {
		v.Ended = append(v.Ended, viewEnded{e.name, e.last, seqText(e.seq), e.at})
	}
	return v
}

func seqText(seq *int64) string {
	if seq == nil {
		return ""
	}
	return strconv.FormatInt(*seq, 10)
}
