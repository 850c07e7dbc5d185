-- Claims due sessions: whoever runs this first ends each of them, with exactly one event in the outbox.
-- KEYS  from 5, two a candidate: user record, lease. For a member that names no session: the meta key twice.
-- ARGV  from 3, three a candidate: member of the index, user, session ('' and '' when it names none).
-- RETURN one integer a candidate: how late it was claimed in ms (0 and more), -1 it is not due
--       any more, -2 it was put in quarantine.

local function claim(user_key, lease_key, member, user, session)
  local score = tonumber(redis.call('ZSCORE', DUE, member) or nil)
  if not score or score > now then return -1 end
  local u = user ~= '' and load(user_key)
  if not u or not find(u.live, session) then
    -- The record alone says who is online, and it does not know this session: nobody goes offline.
    quarantine(DUE, 'deadline of an unknown session', member)
    redis.call('ZREM', DUE, member)
    return -2
  end
  local s = find(u.live, session)
  finish(user_key, lease_key, user, u, session, s.leaving and 'left' or 'expired', score, '')
  return now - score
end

local results = {}
local a, k = 3, 5
while ARGV[a] do
  results[#results + 1] = claim(KEYS[k], KEYS[k + 1], ARGV[a], ARGV[a + 1], ARGV[a + 2])
  a, k = a + 3, k + 2
end
return results
