-- In front of every script: what time it is, and what a partition's meta hash tells.
--
-- Meta hash: life, generation, n (events written), floor (no epoch is below it), pulse (ms of the last
-- accepted beat), offset (ms added to the clock; only tests set it).
-- All times are ms of Redis's clock. Lua writes whole numbers below 1e14 exactly, so they need no format.

local clock
do
  local t = redis.call('TIME')
  clock = t[1] * 1000 + math.floor(t[2] / 1000)
end

-- beat_was_accepted stamps the pulse of a partition, at most once a second. It tells the sweep that beats get in: a
-- gap between pulses is a gap of ingress.
local function beat_was_accepted(meta, life, now, pulse)
  if life and (now - pulse >= 1000 or now < pulse) then redis.call('HSET', meta, 'pulse', now) end
end
