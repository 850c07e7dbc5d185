-- In front of every script that reads or writes user records: the one owner of the texts that are stored. It calls nothing
-- in Redis and knows neither keys nor arguments: text in, table out, and back.
--
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

-- fresh is the record of a user of whom nothing is known.
local function fresh() return { live = {}, ended = {}, rest = {}, groups = '', more = '' } end

-- parse reads a record that is not later; nil where it is junk. Ends that are forgotten at the instant now are left out.
local function parse(raw, now)
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

-- write returns the text of a record and, for a user without a live session, the ms that it stays.
local function write(u, now)
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
  if #u.live > 0 then return text end
  return text, math.max(keep, 1)
end

-- What follows are quick forms of the same for the usual record, that of a user with one live session and nothing else.
-- Numbers in arguments are written as they are, and strings of digits do as well.

-- What a renewal needs of the usual record, in the short form and in the long one: all before the session's line, epoch,
-- last - epoch; in the long one session, epoch - start, seq, and meta with what is behind it.
local RENEW_SHORT = '^(a(%d+)[^\n]*\n)%+(%-?%d*),?%d*$'
local RENEW_LONG = '^(a(%d+)[^\n]*\n)%+(%-?%d*),%d*,([^,]*),(%d*),%d*,%-?%d*,(%d*),([^\n]*)$'

-- What the end of the session needs: epoch, the rest of the head, last - epoch, ttl; in the long form all else as well.
local END_SHORT = '^a(%d+)([^\n]*)\n%+(%-?%d*),?(%d*)$'
local END_LONG = '^a(%d+)([^\n]*)\n%+(%-?%d*),(%d*),([^,]*),(%d*),(%d*),(%-?%d*),(%d*),([^\n]*)$'
local END_HEAD = '^,%d*,(%d*),([^,]*)$' -- the rest of the head, where it has no later fields: seen, groups

-- write_renewed returns the usual record after a renewal; head is all before the session's line, and the other fields
-- are '' for the usual value.
local function write_renewed(head, last, ttl, session, start, grace, seq, meta)
  if session == '' and grace == '' and start == '' and seq == '' and meta == '' then
    if ttl == '' then return head .. '+' .. last end
    return head .. '+' .. last .. ',' .. ttl
  end
  return head .. '+' .. last .. ',' .. ttl .. ',' .. session .. ',' .. start .. ',' .. grace .. ',,' .. seq .. ',' .. meta
end

-- write_ended returns the record of an offline user with one remembered end.
local function write_ended(epoch, since, seen, groups, session, last, seq, ended)
  return 'a' .. epoch .. ',' .. since .. ',' .. seen .. ',' .. groups .. '\n-' .. session .. ',' .. last .. ',' .. seq .. ',' .. ended
end

-- write_sessions returns the live sessions as an event has them.
local function write_sessions(live)
  local sessions = {}
  for i, s in ipairs(live) do
    sessions[i] = s.name .. ',' .. s.start .. ',' .. s.ttl .. ',' .. s.grace
  end
  return table.concat(sessions, ' ')
end

-- An event's text is write_event, its number n, and write_event_end.
local function write_event(type, user, session, epoch, reason, basis, deadline, detected_at, seen, life, generation)
  return '1\n' .. type .. '\n' .. user .. '\n' .. session .. '\n' .. epoch .. '\n' .. reason .. '\n' .. basis .. '\n' .. deadline ..
    '\n' .. detected_at .. '\n' .. seen .. '\n' .. life .. '\n' .. generation .. '\n'
end

local function write_event_end(trace, groups, sessions, meta)
  return '\n' .. trace .. '\n' .. groups .. '\n' .. sessions .. '\n' .. meta
end

