package redisstore

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/record.lua
var recordLua string

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

// What stands in front of the scripts.
var (
	renewPrelude     = clockLua + recordLua
	partitionPrelude = clockLua + partitionLua
	statePrelude     = partitionPrelude + recordLua + stateLua
)

// One script for each transition, and one for the usual heartbeat.
var (
	renewScript      = redis.NewScript(renewPrelude + renewLua)
	heartbeatScript  = redis.NewScript(statePrelude + heartbeatLua)
	leaveScript      = redis.NewScript(statePrelude + leaveLua)
	dueScript        = redis.NewScript(partitionPrelude + dueLua)
	claimScript      = redis.NewScript(statePrelude + claimLua)
	keyExpiredScript = redis.NewScript(statePrelude + keyExpiredLua)
)

// maxItems is how many beats, leaves or claims one script call takes, so that none blocks Redis for 10 ms
// (design D13).
const maxItems = 200
