-- Applies heartbeats, in order: renews or starts a session each. renew.lua does the usual case faster.
-- KEYS  from 5, two a beat: user record, lease.
-- ARGV  from 3, nine a beat: user, session, ttl s, grace s, age ms, seq or '', groups ('*' keeps, '' clears,
--       else ids with blanks between), meta ('' keeps, '{}' clears), traceparent.
-- RETURN one string a beat, with commas between: change (online, started, renewed, stale, full), 1 when the
--       user is online, epoch or '', due or '', the session's last seq or ''.

local function beat(user_key, lease_key, user, session, ttl, grace, age, seq, groups, meta, trace)
  local u = load(user_key)
  local s = find(u.live, session)
  local prior = s or find(u.ended, session)
  local instant = now - age
  local due = instant + (ttl + grace) * 1000
  local function answer(change)
    return change .. (#u.live > 0 and ',1,' or ',0,') .. (u.epoch or '') .. ',' .. (s and s.due or '') .. ',' ..
      (s and s.seq or prior and prior.seq or '')
  end

  if stale(prior, instant, seq) or due <= now then return answer('stale') end
  if not s and #u.live >= MAX_SESSIONS then return answer('full') end

  local change, basis = 'renewed', nil
  if not s then
    basis = u.epoch
    u.epoch = next_epoch(u)
    change = 'started'
    if #u.live == 0 then
      change = 'online'
      u.since = now
    end
    s = { name = session, start = u.epoch, seq = prior and prior.seq or '', meta = '' }
    u.live[#u.live + 1] = s
    if prior then
      local _, i = find(u.ended, session)
      table.remove(u.ended, i)
    end
  end
  s.ttl, s.grace, s.last, s.due, s.leaving = ttl, grace, instant, due, false
  if seq ~= '' then s.seq = seq end
  if groups ~= '*' then u.groups = groups end
  if meta == '{}' then s.meta = '' elseif meta ~= '' then s.meta = meta end

  save(user_key, u)
  hold(lease_key, user, s)
  if change ~= 'renewed' then
    emit(u, user, change == 'online' and 'user.online' or 'session.started', session, 'beat', basis or u.epoch, nil, s.meta, trace)
  end
  return answer(change)
end

local results = {}
local a, k = 3, 5
while ARGV[a] do
  results[#results + 1] = beat(KEYS[k], KEYS[k + 1], ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]),
    tonumber(ARGV[a + 4]), ARGV[a + 5], ARGV[a + 6], ARGV[a + 7], ARGV[a + 8])
  a, k = a + 9, k + 2
end
beat_was_accepted(META, life, now, pulse)
return results
