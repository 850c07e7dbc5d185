-- Applies leaves, in order: ends a session at once or, where it has a grace, moves its deadline forward.
-- KEYS  from 5, two a leave: user record, lease.
-- ARGV  from 3, five a leave: user, session, age ms, seq or '', traceparent.
-- RETURN one string a leave: left, leaving (in its grace), stale, unknown.

local function leave(user_key, lease_key, user, session, age, seq, trace)
  local u = load(user_key)
  local instant = now - age
  local s = find(u.live, session)
  local prior = s or find(u.ended, session)
  if stale(prior, instant, seq) then return 'stale' end
  if not s then
    -- Remembered as an end, so that a beat which this leave overtook does not start a ghost.
    remember(u, session, instant, seq ~= '' and seq or prior and prior.seq or '')
    save(user_key, u)
    return 'unknown'
  end
  s.last, s.due = instant, math.min(s.due, instant + s.grace * 1000)
  if seq ~= '' then s.seq = seq end
  if s.grace == 0 then
    finish(user_key, lease_key, user, u, session, 'left', nil, trace)
    return 'left'
  end
  s.leaving = true
  save(user_key, u)
  hold(lease_key, user, s)
  return 'leaving'
end

local results = {}
local a, k = 3, 5
while ARGV[a] do
  results[#results + 1] = leave(KEYS[k], KEYS[k + 1], ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2]), ARGV[a + 3], ARGV[a + 4])
  a, k = a + 5, k + 2
end
return results
