-- In front of every script of one partition, after clock.lua: its keys and its meta hash.
--
-- KEYS  1 meta hash, 2 deadline index (zset), 3 outbox (stream), 4 quarantine (stream), then the script's own.
-- ARGV  1 the name that a new life of the data would get, 2 '1' to keep lease keys, then the script's own.

local META, DUE, OUTBOX, QUARANTINE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local LEASES = ARGV[2] == '1'

local now, life, generation, floor, pulse
do
  local m = redis.call('HMGET', META, 'life', 'generation', 'floor', 'pulse', 'offset')
  now = clock + (tonumber(m[5] or 0) or 0)
  life, generation = m[1], tonumber(m[2] or 0) or 0
  floor, pulse = tonumber(m[3] or 0) or 0, tonumber(m[4] or 0) or 0
end
