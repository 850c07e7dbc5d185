-- In front of every script: its keys, and what time it is.
--
-- KEYS  1 meta hash, 2 deadline index (zset), 3 outbox (stream), 4 quarantine (stream), then the script's own.
-- ARGV  1 the name that a new life of the data would get, 2 '1' to keep lease keys, then the script's own.
--
-- Meta hash: life, generation, n (events written), floor (no epoch is below it), pulse (ms of the last
-- accepted beat), offset (ms added to the clock; only tests set it).
-- All times are ms of Redis's clock. Lua writes whole numbers below 1e14 exactly, so they need no format.

local META, DUE, OUTBOX, QUARANTINE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local LEASES = ARGV[2] == '1'

local now, life, generation, floor, pulse
do
  local t = redis.call('TIME')
  local m = redis.call('HMGET', META, 'life', 'generation', 'floor', 'pulse', 'offset')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
  if m[5] then now = now + tonumber(m[5]) end
  life, generation = m[1], tonumber(m[2] or 0) or 0
  floor, pulse = tonumber(m[3] or 0) or 0, tonumber(m[4] or 0) or 0
end

-- beat_was_accepted stamps the pulse, at most once a second. It tells the sweep that beats get in: a gap
-- between pulses is a gap of ingress.
local function beat_was_accepted()
  if life and (now - pulse >= 1000 or now < pulse) then redis.call('HSET', META, 'pulse', now) end
end
