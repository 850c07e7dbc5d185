-- Renews live sessions, the usual case of a heartbeat, and leaves all else as it is for heartbeat.lua: users with
-- several sessions or remembered ends, stale beats, leaves under way, starts, junk. One call may have beats of several
-- partitions, where all are on one server; a partition with a fault is left to heartbeat.lua as well, which tells it.
--
-- KEYS  two a partition: meta hash, deadline index; then one a beat, by partition: user record. Lease keys are made
--       here: they are in the slot of their partition, and nothing goes by them.
-- ARGV  1 '1' to keep lease keys; 2 by how many ms the times of receipt must be moved; 3 how many partitions; how many
--       beats each has; then one a beat: when it was received in ms (see received in clock.lua), and unless the beat is
--       the usual one: ttl s ('' for 45), session ('' for default), grace s ('' for 0), seq or '', each after a comma.
-- RETURN a string of lines: the time of the server in ms; then for each partition its offset in ms, and one line for each
--       of its beats: epoch, and after a comma the session's last seq where it has one; or nothing where heartbeat.lua
--       must do it.

local call, try, match, sub, type, tonumber = redis.call, redis.pcall, string.match, string.sub, type, tonumber
local LEASES, MOVED, PARTITIONS = ARGV[1] == '1', tonumber(ARGV[2]), tonumber(ARGV[3])

-- What the arguments of the beats say. Many have the same one, so each is read once.
local beats = setmetatable({}, { __index = function(known, text)
  local at, ttl, session, grace, seq = match(text, '^(.-),(%d*),([^,]*),(%d*),(%d*)$')
  local b = { ttl = ttl or '', session = session or '', grace = grace or '', seq = seq or '' }
  b.instant = received(tonumber(at or text), MOVED)
  b.due = b.instant + ((tonumber(ttl) or 45) + (tonumber(grace) or 0)) * 1000
  local left = b.due - clock
  b.late, b.left = left <= 0, left .. ''
  b.name = b.session == '' and 'default' or b.session
  known[text] = b
  return b
end })

local offset -- of the partition

-- renew returns the record after a beat, and what is answered. It returns nothing where heartbeat.lua must do it.
local function renew(raw, b)
  local start, last_seq, meta, seq = '', '', '', b.seq
  local head, epoch, last = match(raw, RENEW_SHORT)
  if head then
    if b.session ~= '' then return nil end
  else
    local session
    head, epoch, last, session, start, last_seq, meta = match(raw, RENEW_LONG)
    if session ~= b.session then return nil end
  end
  local instant = b.instant + offset - epoch -- as the record counts
  if b.late or instant < (tonumber(last) or 0) then return nil end
  if seq == '' then
    seq = last_seq
  elseif last_seq ~= '' and tonumber(seq) <= tonumber(last_seq) then
    return nil
  end
  local record = write_renewed(head, instant, b.ttl, b.session, start, b.grace, seq, meta)
  if seq ~= '' then epoch = epoch .. ',' .. seq end
  return record, epoch
end

local lines, writes, leases = { clock .. '' }, {}, {}
local n, w, l = 1, 0, 0 -- how many of each
-- The record of each user after the beats so far; false when a beat was left to heartbeat.lua, since later ones must not
-- overtake it.
local latest = {}
local found = call('MGET', unpack(KEYS, 2 * PARTITIONS + 1))
local i = 0
for p = 1, PARTITIONS do
  local meta = KEYS[2 * p - 1]
  local m = try('HMGET', meta, 'life', 'pulse', 'offset')
  local life = m[1] -- nil for an error, too
  offset = tonumber(m[3] or 0) or 0
  n = n + 1
  lines[n] = offset .. ''
  local user_at = #meta - 4 -- the key of a user is that of the meta hash with the user in the place of /meta
  local lease = sub(meta, 1, -5) .. 'lease/'
  local n_before, w_before, l_before = n, w, l
  local moves, k = {}, 0
  local first = i + 1
  i = i + tonumber(ARGV[3 + p])
  for j = first, i do
    local user_key, b = KEYS[2 * PARTITIONS + j], beats[ARGV[3 + PARTITIONS + j]]
    local raw = latest[user_key]
    if raw == nil then raw = life and found[j] end
    local record, answer
    if raw then record, answer = renew(raw, b) end
    latest[user_key] = record or false
    n = n + 1
    lines[n] = answer or ''
    if record then
      writes[w + 1], writes[w + 2] = user_key, record
      w = w + 2
      local member = sub(user_key, user_at) .. '/' .. b.name
      moves[k + 1], moves[k + 2] = b.due + offset, member
      k = k + 2
      if LEASES then
        leases[l + 1], leases[l + 2] = lease .. member, b.left
        l = l + 2
      end
    end
  end
  -- First of all writes, as it is refused when memory is full or the type is wrong.
  if k > 0 and type(try('ZADD', KEYS[2 * p], unpack(moves))) == 'table' then
    for j = n_before + 1, n do lines[j] = '' end
    for j = w_before + 1, w do writes[j] = nil end
    for j = l_before + 1, l do leases[j] = nil end
    w, l = w_before, l_before
  end
  beat_was_accepted(meta, life, clock + offset, tonumber(m[2] or 0) or 0)
end
if w > 0 then call('MSET', unpack(writes)) end
for j = 1, l, 2 do
  if try('PEXPIRE', leases[j], leases[j + 1]) == 0 then try('SET', leases[j], '1', 'PX', leases[j + 1]) end
end
return table.concat(lines, '\n')
