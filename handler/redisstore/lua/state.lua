-- In front of every script that makes transitions, after partition.lua and record.lua: how what is stored changes.
--
-- Deadline index: member "<user>/<session>", score = deadline in ms. It says what may be due: nothing ends before its
-- score, and at its score only if the record has no later deadline.
local MAX_SESSIONS = 32

-- A wrong type under one of the shared keys must stop the script here, before its first write.
redis.call('ZCARD', DUE)
redis.call('XLEN', OUTBOX)

-- begin_life names the life of the data where there is none. Call it right before the first write.
local function begin_life()
  if not life then
    life = ARGV[1]
    redis.call('HSET', META, 'life', life, 'generation', 0)
  end
end

-- quarantine keeps a note of what could not be understood, so that the rest can go on.
local function quarantine(key, what, content)
  redis.pcall('XADD', QUARANTINE, 'MAXLEN', '~', 1000, '*', 'key', key, 'what', what, 'content', string.sub(content or '', 1, 1024))
end

-- load reads a user record. Junk is noted and read as no record; so is one whose time is over. That is not
-- before its epoch, which may be ahead of the clock: else the same epoch could come again. Of a record that only a later
-- version may change it returns no more than later, and nothing may be written then.
local function load(key)
  local raw = redis.pcall('GET', key)
  if not raw then return fresh() end
  if type(raw) == 'table' then
    quarantine(key, 'user record of a wrong type')
    return fresh()
  end
  if is_later(raw) then return { later = true, live = {}, ended = {}, rest = {} } end
  local ok, u = pcall(parse, raw, now)
  if not ok or not u then
    quarantine(key, 'unreadable user record', raw)
    return fresh()
  end
  if #u.live == 0 and #u.ended == 0 and #u.rest == 0 and (not u.epoch or now - math.max(u.since, u.epoch) >= RECORD_MEMORY) then
    return fresh()
  end
  return u
end

-- save writes a user record. It is the first write of every transition on purpose: SET is refused when
-- memory is full, so the script then fails whole.
local function save(key, u)
  begin_life()
  local text, keep = write(u, now)
  if keep then
    redis.call('SET', key, text, 'PX', keep)
  else
    redis.call('SET', key, text)
  end
end

local function find(list, name)
  for i, s in ipairs(list) do
    if s.name == name then return s, i end
  end
end

-- remember keeps the end of a session: the newest MAX_SESSIONS of a user.
local function remember(u, name, last, seq)
  local _, i = find(u.ended, name)
  if i then table.remove(u.ended, i) end
  u.ended[#u.ended + 1] = { name = name, last = last, seq = seq, ended = now }
  if #u.ended > MAX_SESSIONS then table.remove(u.ended, 1) end
end

-- stale says whether a beat or leave comes after one that was applied already. An instant that is still to come was made
-- by a clock that has been set back since, or by another server: nothing is older than that.
local function stale(prior, instant, seq)
  if not prior then return false end
  if instant < prior.last and prior.last <= now then return true end
  return seq ~= '' and prior.seq ~= '' and tonumber(seq) <= tonumber(prior.seq)
end

local function next_epoch(u) return math.max((u.epoch or 0) + 1, now, floor) end

-- last_seen is the instant of the user's last applied beat or leave, nil when there was none.
local function last_seen(u)
  local seen = u.seen
  for _, s in ipairs(u.live) do
    if not seen or s.last > seen then seen = s.last end
  end
  return seen
end

-- emit appends the event of the transition that was just saved to the outbox.
local function emit(u, user, type, session, reason, basis, deadline, meta, trace)
  local n = redis.call('HINCRBY', META, 'n', 1)
  local seen = last_seen(u)
  redis.call('XADD', OUTBOX, '*', 'e',
    write_event(type, user, session, u.epoch, reason, basis, deadline or '', now, seen or '', life, generation) .. n ..
    write_event_end(trace, u.groups, write_sessions(u.live), meta))
end

-- finish ends a live session: record, index, lease, and exactly one event, in this order.
local function finish(user_key, lease_key, user, u, session, reason, deadline, trace)
  local s, i = find(u.live, session)
  table.remove(u.live, i)
  remember(u, session, s.last, s.seq)
  u.seen = math.max(u.seen or 0, s.last)
  u.epoch = next_epoch(u)
  local type = 'session.ended'
  if #u.live == 0 then
    type = 'user.offline'
    u.since = now
  end
  save(user_key, u)
  redis.call('ZREM', DUE, user .. '/' .. session)
  if LEASES then redis.call('UNLINK', lease_key) end
  emit(u, user, type, session, reason, s.start, deadline, s.meta, trace)
end

-- hold writes the deadline of a live session to the index and, for other clients of Redis, the lease key.
local function hold(lease_key, user, s)
  redis.call('ZADD', DUE, s.due, user .. '/' .. s.name)
  if LEASES then redis.call('SET', lease_key, '1', 'PX', math.max(s.due - now, 1)) end
end
