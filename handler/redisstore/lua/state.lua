-- In front of every script that makes transitions, after partition.lua: what is stored, and how it changes.
--
-- Deadline index: member "<user>/<session>", score = deadline in ms. It says what may be due: nothing ends before its
-- score, and at its score only if the record has no later deadline.
-- Outbox entry: one field e, lines of: version, type, user, session, epoch, reason, basis, deadline,
-- detected at, last seen, life, generation, n, traceparent, groups, sessions, meta.
--
-- User record: a string, one line for the user and one for each session. Lines that say the usual have a short form.
--   a<epoch>                                                        since = epoch, not seen before, no groups
--   a<epoch>,<epoch - since>,<seen>,<groups>
--   +<last - epoch>  or  +<last - epoch>,<ttl s>                    live: session "default", all else as usual
--   +<last - epoch>,<ttl s>,<session>,<epoch - start epoch>,<grace s>,<due - last>,<seq>,<meta>       live
--   ~ instead of +                                                  live, leaving in its grace
--   -<session>,<last - epoch>,<seq>,<ended - last>                  ended
-- "last" is the instant of the last applied beat or leave. An empty field is the usual value: session
-- "default", ttl 45, a difference of 0, due = last + ttl + grace, no seq, no meta. Ids hold neither comma,
-- blank nor line end; meta is compact JSON without line ends, and is last.
--
-- Two versions run side by side in every deploy, so what a later version writes is no junk. It may
--   begin a record with another letter, b to z, before a digit, a comma, a line end or nothing: then only it may change
--   the record. A beat or leave of that user is refused for now, a claim leaves the session in the index, and a reader
--   says that it does not know. Such a record is for what would be wrong if it were read by these rules.
--   add fields at the end of a line, each after a comma. In the head they follow the groups (all four fields are there
--   then), in a live line meta, in an ended one the fourth field. They are kept while the session or end is.
--   add lines of another kind: they begin with any other visible ASCII character but a digit or a comma. They are kept.
--   add members to the index that name no session; version.go has their form.
-- What has none of these forms is junk: it is noted in the quarantine, and written over.

local END_MEMORY = 4200000     -- ms that an ended session is remembered: largest ttl + grace
local RECORD_MEMORY = 86400000 -- ms that an offline user's record stays
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

local function field(delta, base) return base + (tonumber(delta) or 0) end
local function delta(value, base) if value == base then return '' end return value - base end
local function or_empty(value, usual) if value == usual then return '' end return value end

-- is_later says whether a record is one that only a later version may change.
local function is_later(raw)
  return string.find(raw, '^[b-z][%d,\n]') or string.find(raw, '^[b-z]$')
end

-- split_meta cuts a live line's meta from the fields that a later version has put behind it.
local function split_meta(text)
  if string.sub(text, 1, 1) == ',' then return '', text end
  if not string.find(text, '},', 1, true) then return text, '' end
  local depth, i = 0, 1
  while true do
    local at = string.find(text, '[{}"]', i)
    if not at then return text, '' end
    local c = string.byte(text, at)
    i = at + 1
    if c == 34 then -- a string: to its end
      repeat
        at = string.find(text, '["\\]', i)
        if not at then return text, '' end
        c = string.byte(text, at)
        if c == 92 then i = at + 2 else i = at + 1 end
      until c == 34
    elseif c == 123 then
      depth = depth + 1
    else
      depth = depth - 1
      if depth <= 0 then
        local more = string.sub(text, at + 1)
        if more ~= '' and string.sub(more, 1, 1) ~= ',' then return text, '' end
        return string.sub(text, 1, at), more
      end
    end
  end
end

local function fresh() return { live = {}, ended = {}, rest = {}, groups = '', more = '' } end

local function parse(raw)
  local u = fresh()
  local base
  for line in string.gmatch(raw, '[^\n]+') do
    local kind = string.sub(line, 1, 1)
    if not base then
      local epoch, since, seen, groups, more = string.match(line, '^a(%d*)$'), '', '', '', ''
      if not epoch then epoch, since, seen, groups, more = string.match(line, '^a(%d*),(%-?%d*),(%d*),([^,]*)(.*)$') end
      if not epoch then return nil end
      u.epoch, u.groups, u.seen, u.more = tonumber(epoch), groups, tonumber(seen), more
      base = u.epoch or 0
      u.since = base - (tonumber(since) or 0)
    elseif kind == '-' then
      local name, last, seq, ended, more = string.match(line, '^%-([^,]*),(%-?%d*),(%d*),(%-?%d*)(.*)$')
      if not name or more ~= '' and string.sub(more, 1, 1) ~= ',' then return nil end
      local e = { name = name, last = field(last, base), seq = seq, more = more }
      e.ended = field(ended, e.last)
      if name == '' then e.name = 'default' end
      if now - e.ended < END_MEMORY then u.ended[#u.ended + 1] = e end
    elseif kind == '+' or kind == '~' then
      local name, start, grace, due, seq, meta, more = '', '', '', '', '', '', ''
      local last, ttl = string.match(line, '^.(%-?%d*),?(%d*)$')
      if not last then
        last, ttl, name, start, grace, due, seq, meta =
          string.match(line, '^.(%-?%d*),(%d*),([^,]*),(%d*),(%d*),(%-?%d*),(%d*),(.*)$')
        if not last then return nil end
        meta, more = split_meta(meta)
      end
      local s = { name = name, start = base - (tonumber(start) or 0), ttl = tonumber(ttl) or 45,
        grace = tonumber(grace) or 0, last = field(last, base), seq = seq, meta = meta, more = more, leaving = kind == '~' }
      s.due = s.last + (tonumber(due) or (s.ttl + s.grace) * 1000)
      if name == '' then s.name = 'default' end
      u.live[#u.live + 1] = s
    elseif string.find(line, '^[!-~]') and not string.find(line, '^[%d,]') then
      u.rest[#u.rest + 1] = line
    else
      return nil
    end
  end
  if not base then return nil end
  return u
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
  local ok, u = pcall(parse, raw)
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
  local base = u.epoch or 0
  local since = ''
  if u.epoch then since = delta(u.epoch, u.since) end
  local head = 'a' .. (u.epoch or '')
  if since ~= '' or u.seen or u.groups ~= '' or u.more ~= '' then
    head = head .. ',' .. since .. ',' .. (u.seen or '') .. ',' .. u.groups .. u.more
  end
  local lines = { head }
  for i, s in ipairs(u.live) do
    local line = (s.leaving and '~' or '+') .. delta(s.last, base)
    local ttl, name, start, grace, due = or_empty(s.ttl, 45), or_empty(s.name, 'default'), delta(base, s.start), or_empty(s.grace, 0), ''
    if s.due - s.last ~= (s.ttl + s.grace) * 1000 then due = s.due - s.last end
    local more = name .. ',' .. start .. ',' .. grace .. ',' .. due .. ',' .. s.seq .. ',' .. s.meta .. (s.more or '')
    if more ~= ',,,,,' then
      line = line .. ',' .. ttl .. ',' .. more
    elseif ttl ~= '' then
      line = line .. ',' .. ttl
    end
    lines[i + 1] = line
  end
  local keep = 0
  if u.epoch then keep = math.max(u.since, u.epoch) + RECORD_MEMORY - now end
  for _, e in ipairs(u.ended) do
    keep = math.max(keep, e.ended + END_MEMORY - now)
    lines[#lines + 1] = '-' .. or_empty(e.name, 'default') .. ',' .. delta(e.last, base) .. ',' .. e.seq .. ',' .. delta(e.ended, e.last) ..
      (e.more or '')
  end
  for _, line in ipairs(u.rest) do lines[#lines + 1] = line end
  local text = table.concat(lines, '\n')
  if #u.live > 0 then
    redis.call('SET', key, text)
  else
    redis.call('SET', key, text, 'PX', math.max(keep, 1))
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
  local sessions = {}
  for i, s in ipairs(u.live) do
    sessions[i] = s.name .. ',' .. s.start .. ',' .. s.ttl .. ',' .. s.grace
  end
  local n = redis.call('HINCRBY', META, 'n', 1)
  local seen = last_seen(u)
  redis.call('XADD', OUTBOX, '*', 'e', table.concat({ '1', type, user, session, u.epoch, reason, basis,
    deadline or '', now, seen or '', life, generation, n, trace,
    u.groups, table.concat(sessions, ' '), meta }, '\n'))
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
