-- Claims due sessions: whoever runs this first ends each of them, with exactly one event in the outbox.
-- KEYS  from 5, two a candidate: user record, lease. For a member that names no session: the meta key twice.
-- ARGV  from 3, two a candidate: member of the index, length of the user in it (0 when it names no session).
-- RETURN one integer a candidate: how late it was claimed in ms (0 and more), -1 it is not due
--       any more, or not yet by its record, and its score is that of the record now, -2 it was put in quarantine, -3 only a later version can end it.

local call, match, sub, find_text, tonumber = redis.call, string.match, string.sub, string.find, tonumber
local results = {}

-- claim ends the session of any candidate.
local function claim(user_key, lease_key, member, user, session)
  local score = tonumber(call('ZSCORE', DUE, member) or nil)
  if not score or score > now then return -1 end
  local u = user ~= '' and load(user_key)
  if u and u.later then return -3 end
  local s = u and find(u.live, session)
  if not s then
    if u and #u.rest > 0 then return -3 end -- the session may be in a line that only a later version can read
    -- The record alone says who is online, and it does not know this session: nobody goes offline.
    quarantine(DUE, 'deadline of an unknown session', member)
    call('ZREM', DUE, member)
    return -2
  end
  if s.due > now then
    -- The record has a later deadline: a version that moves the index lazily renewed the session.
    call('ZADD', DUE, s.due, member)
    return -1
  end
  finish(user_key, lease_key, user, u, session, s.leaving and 'left' or 'expired', score, '')
  return now - score
end

-- What follows does the same for the usual candidate, the only session of a user without remembered ends, in about a
-- third of the time: what can be is read and removed for all at once. It is what counts when many are due together.

-- Written once, since Redis takes long to write a number.
local NOW, GENERATION = now .. '', generation .. ''

-- usual returns what a candidate's end writes, nil for one that claim must end: the user record, the time that it
-- stays, and the event before and after its number.
local function usual(raw, user, session, score)
  local name, start, grace, due, seq, meta = '', '', '', '', '', ''
  local old, more, last, ttl = match(raw, END_SHORT)
  if not old then old, more, last, ttl, name, start, grace, due, seq, meta = match(raw, END_LONG) end
  if not old or not life or (name == '' and 'default' or name) ~= session then return nil end
  -- Fields of a later version may follow meta.
  if meta ~= '' and (sub(meta, 1, 1) ~= '{' or find_text(meta, '},', 1, true)) then return nil end
  local seen, groups = '', ''
  if more ~= '' then
    seen, groups = match(more, END_HEAD)
    if not seen then return nil end
  end
  local at = old + (tonumber(last) or 0)
  if at + (tonumber(due) or ((tonumber(ttl) or 45) + (tonumber(grace) or 0)) * 1000) > now then return nil end
  if seen == '' or at > tonumber(seen) then seen = at .. '' end
  local epoch, written, since = now, NOW, ''
  if old + 1 > now or floor > now then
    epoch = math.max(old + 1, floor)
    written, since = epoch .. '', epoch - now
  end
  local ended = ''
  if at ~= now then ended = now - at end
  if start == '' then start = old else start = (old - start) .. '' end
  local record = write_ended(written, since, seen, groups, name, at - epoch, seq, ended)
  local before = write_event('user.offline', user, session, written, 'expired', start, score, NOW, seen, life, GENERATION)
  return record, epoch + RECORD_MEMORY - now, before, write_event_end('', groups, '', meta)
end

local users, members = {}, {}
local n, k, a = 0, 5, 3
while ARGV[a] do
  n = n + 1
  users[n], members[n] = KEYS[k], ARGV[a]
  k, a = k + 2, a + 2
end
local scores, records = call('ZMSCORE', DUE, unpack(members)), call('MGET', unpack(users))

local plans, removed, leases = {}, {}, {} -- of the usual ones
local taken = {}
local others = false
for i = 1, n do
  local member, length = members[i], tonumber(ARGV[2 + 2 * i])
  local score = tonumber(scores[i] or nil)
  if not score or score > now then
    results[i] = -1
  elseif length > 0 and records[i] and not taken[users[i]] then
    local record, keep, before, after = usual(records[i], sub(member, 1, length), sub(member, length + 2), scores[i])
    if record then
      plans[i] = { record, keep, before, after }
      taken[users[i]] = true
      removed[#removed + 1], leases[#leases + 1] = member, KEYS[4 + 2 * i]
      results[i] = now - score
    end
  end
  others = others or not results[i]
end

local number
if #removed > 0 then
  -- The first write is refused when memory is full or the counter cannot count; then nothing is written.
  number = call('HINCRBY', META, 'n', others and 0 or #removed) - #removed
  for i = 1, n do
    local plan = plans[i]
    if plan then call('SET', users[i], plan[1], 'PX', plan[2]) end
  end
  call('ZREM', DUE, unpack(removed))
  if LEASES then call('UNLINK', unpack(leases)) end
end
for i = 1, n do
  local plan = plans[i]
  if plan then
    number = others and call('HINCRBY', META, 'n', 1) or number + 1
    call('XADD', OUTBOX, '*', 'e', plan[3] .. number .. plan[4])
  elseif not results[i] then
    local member, length = members[i], tonumber(ARGV[2 + 2 * i])
    local user, session = '', ''
    if length > 0 then user, session = sub(member, 1, length), sub(member, length + 2) end
    results[i] = claim(users[i], KEYS[4 + 2 * i], member, user, session)
  end
end
return results
