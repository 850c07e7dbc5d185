-- Finds what is due. Reads only: the claim checks each score again.
-- KEYS  none of its own.
-- ARGV  3 how many members at most.
-- RETURN now ms, next deadline ms or '', entries in the outbox, then the due members, oldest first.

local limit = tonumber(ARGV[3])
local found = redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, limit)
local after = redis.call('ZRANGE', DUE, #found, #found, 'WITHSCORES')
local reply = { now .. '', after[2] or '', redis.call('XLEN', OUTBOX) }
for _, member in ipairs(found) do reply[#reply + 1] = member end
return reply
