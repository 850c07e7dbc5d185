-- Renews live sessions, the usual case of a heartbeat, and leaves all else as it is for heartbeat.lua: users with
-- several sessions or remembered ends, stale beats, leaves under way, starts, junk.
-- KEYS  from 5, two a beat: user record, lease.
-- ARGV  from 3, seven a beat: session ('' for default), member of the index, ttl s ('' for 45), grace s ('' for 0),
--       age ms, ms left until the deadline, seq or ''.
-- RETURN one string a beat, with commas between: epoch, due, the session's last seq or ''; or '' where
--       heartbeat.lua must do it.

-- The record of a user with one live session, in the short form and in the long one; state.lua has both.
local SHORT = '^(a(%d+)[^\n]*\n)%+(%-?%d*),?%d*$'
local LONG = '^(a(%d+)[^\n]*\n)%+(%-?%d*),%d*,([^,]*),(%d*),%d*,%-?%d*,(%d*),([^\n]*)$'

local left_out = {} -- user records whose beats are not applied here: later ones must not overtake earlier ones

local function renew(user_key, lease_key, session, member, ttl, grace, age, left, seq)
  if not life or left <= 0 or left_out[user_key] then return '' end
  local raw = redis.pcall('GET', user_key)
  if type(raw) ~= 'string' then return '' end
  local name, start, last_seq, meta = '', '', '', ''
  local head, epoch, last = string.match(raw, SHORT)
  if not head then head, epoch, last, name, start, last_seq, meta = string.match(raw, LONG) end
  if not head or name ~= session then return '' end
  local instant = now - age - epoch -- after the epoch, as the record counts
  if instant < (tonumber(last) or 0) then return '' end
  if seq == '' then
    seq = last_seq
  elseif last_seq ~= '' and tonumber(seq) <= tonumber(last_seq) then
    return ''
  end
  local due = now + left
  redis.call('ZADD', DUE, due, member) -- first, as it is refused when memory is full or the type is wrong
  local line = head .. '+' .. instant
  if name ~= '' or start ~= '' or grace ~= '' or seq ~= '' or meta ~= '' then
    line = line .. ',' .. ttl .. ',' .. name .. ',' .. start .. ',' .. grace .. ',,' .. seq .. ',' .. meta
  elseif ttl ~= '' then
    line = line .. ',' .. ttl
  end
  redis.call('SET', user_key, line)
  if LEASES then redis.call('SET', lease_key, '1', 'PX', left) end
  return epoch .. ',' .. due .. ',' .. seq
end

local results = {}
local n, a, k = 0, 3, 5
while ARGV[a] do
  n = n + 1
  local result = renew(KEYS[k], KEYS[k + 1], ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], tonumber(ARGV[a + 5]), ARGV[a + 6])
  if result == '' then left_out[KEYS[k]] = true end
  results[n] = result
  a, k = a + 7, k + 2
end
beat_was_accepted()
return results
