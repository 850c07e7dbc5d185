package redisstore

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/state.lua
var stateLua string

//go:embed lua/clock.lua
var clockLua string

//go:embed lua/partition.lua
var partitionLua string

//go:embed lua/renew.lua
var renewLua string

//go:embed lua/heartbeat.lua
var heartbeatLua string

//go:embed lua/leave.lua
var leaveLua string

//go:embed lua/due.lua
var dueLua string

//go:embed lua/claim.lua
var claimLua string

//go:embed lua/key_expired.lua
var keyExpiredLua string

// One script for each transition, and one for the usual heartbeat.
var (
	renewScript      = redis.NewScript(clockLua + renewLua)
	heartbeatScript  = redis.NewScript(clockLua + partitionLua + stateLua + heartbeatLua)
	leaveScript      = redis.NewScript(clockLua + partitionLua + stateLua + leaveLua)
	dueScript        = redis.NewScript(clockLua + partitionLua + dueLua)
	claimScript      = redis.NewScript(clockLua + partitionLua + stateLua + claimLua)
	keyExpiredScript = redis.NewScript(clockLua + partitionLua + stateLua + keyExpiredLua)
)

// maxItems is how many beats, leaves or claims one script call takes, so that none blocks Redis for 10 ms
// (design D13).
const maxItems = 200
