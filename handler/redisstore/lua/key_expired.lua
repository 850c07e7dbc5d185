-- Foreign keys expired (design D7). A notification has no identity: two listeners cannot tell that they heard of the
-- same expiry. So only the holder of the partition's listener lease writes events; a free lease is taken.
--
-- KEYS  5 the listener lease. ARGV  3 its length in ms, then the keys.
-- Outbox entry: one field e, lines of: version 2, type, detected at, life, generation, n, key. The key is last: it
-- may have lines itself.
-- Returns how many events were written.

local LEASE = KEYS[5]
local holder = redis.call('GET', LEASE)
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', LEASE, ARGV[1], 'PX', ARGV[3]) -- first: it is refused when memory is full
if #ARGV > 3 then begin_life() end
for i = 4, #ARGV do
  local n = redis.call('HINCRBY', META, 'n', 1)
  redis.call('XADD', OUTBOX, '*', 'e', table.concat({ '2', 'redis.key.expired', now, life, generation, n, ARGV[i] }, '\n'))
end
return #ARGV - 3
