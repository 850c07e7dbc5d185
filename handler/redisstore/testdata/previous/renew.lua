-- Renews live sessions, the usual case of a heartbeat, and leaves all else as it is for heartbeat.lua: users with
-- several sessions or remembered ends, stale beats, leaves under way, starts, junk. One call may have beats of several
-- partitions, where all are on one server; a partition with a fault is left to heartbeat.lua as well, which tells it.
--
-- KEYS  for each partition: meta hash, deadline index; then two a beat: user record, lease.
-- ARGV  1 '1' to keep lease keys; then for each partition: how many beats; and two a beat: ms left until the deadline;
--       '' for the usual beat, else ttl s ('' for 45), session ('' for default), grace s ('' for 0), seq or '', with
--       commas between.
-- RETURN a string with one line for each partition, its time in ms, and one for each of its beats: epoch, and after a
--       comma the session's last seq where it has one; or nothing where heartbeat.lua must do it.

local call, try, match, sub, type, tonumber = redis.call, redis.pcall, string.match, string.sub, type, tonumber
local LEASES = ARGV[1] == '1'

-- The record of a user with one live session, in the short form and in the long one; state.lua has both.
local SHORT = '^(a(%d+)[^\n]*\n)%+(%-?%d*),?%d*$'
local LONG = '^(a(%d+)[^\n]*\n)%+(%-?%d*),%d*,([^,]*),(%d*),%d*,%-?%d*,(%d*),([^\n]*)$'

local now, index, member_at -- of the partition
local left_out = {}         -- user records whose beats are not applied here: later ones must not overtake earlier ones

local function renew(user_key, lease_key, left, special)
  if tonumber(left) <= 0 or left_out[user_key] then return '' end
  local raw = try('GET', user_key)
  if type(raw) ~= 'string' then return '' end
  local start, meta, last_seq = '', '', ''
  local session, ttl, grace, seq = '', '', '', ''
  local hold = 45000
  if special ~= '' then
    ttl, session, grace, seq = match(special, '^(%d*),([^,]*),(%d*),(%d*)$')
    hold = (ttl == '' and 45 or ttl) * 1000 + (grace == '' and 0 or grace) * 1000
  end
  local head, epoch, last = match(raw, SHORT)
  if not head then
    local name
    head, epoch, last, name, start, last_seq, meta = match(raw, LONG)
    if name ~= session then return '' end
  elseif session ~= '' then
    return ''
  end
  local due = now + left
  local instant = due - hold - epoch -- after the epoch, as the record counts
  if instant < (tonumber(last) or 0) then return '' end
  if seq == '' then
    seq = last_seq
  elseif last_seq ~= '' and tonumber(seq) <= tonumber(last_seq) then
    return ''
  end
  -- First, as it is refused when memory is full or the type is wrong.
  if type(try('ZADD', index, due, sub(lease_key, member_at))) == 'table' then return '' end
  local line = head .. '+' .. instant
  if session ~= '' or start ~= '' or grace ~= '' or seq ~= '' or meta ~= '' then
    line = line .. ',' .. ttl .. ',' .. session .. ',' .. start .. ',' .. grace .. ',,' .. seq .. ',' .. meta
  elseif ttl ~= '' then
    line = line .. ',' .. ttl
  end
  call('SET', user_key, line)
  if LEASES then call('SET', lease_key, '1', 'PX', left) end
  if seq ~= '' then return epoch .. ',' .. seq end
  return epoch
end

local lines = {}
local n, k, a = 0, 1, 2
while ARGV[a] do
  local meta = KEYS[k]
  local m = try('HMGET', meta, 'life', 'pulse', 'offset')
  local life = m[1] -- nil for an error, too
  now, index = clock + (tonumber(m[3] or 0) or 0), KEYS[k + 1]
  member_at = #meta + 3 -- a lease key is the meta key with lease/<member> in the place of meta
  n = n + 1
  lines[n] = now
  local beats = tonumber(ARGV[a])
  k, a = k + 2, a + 1
  for _ = 1, beats do
    local user_key = KEYS[k]
    local line = ''
    if life then line = renew(user_key, KEYS[k + 1], ARGV[a], ARGV[a + 1]) end
    if line == '' then left_out[user_key] = true end
    n = n + 1
    lines[n] = line
    k, a = k + 2, a + 2
  end
  beat_was_accepted(meta, life, now, tonumber(m[2] or 0) or 0)
end
return table.concat(lines, '\n')
