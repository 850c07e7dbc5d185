package redisstore

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

//go:embed lua/state.lua
var stateLua string

//go:embed lua/heartbeat.lua
var heartbeatLua string

//go:embed lua/leave.lua
var leaveLua string

//go:embed lua/due.lua
var dueLua string

//go:embed lua/claim.lua
var claimLua string

// One script for each transition; lua/state.lua is put in front of each.
var (
	heartbeatScript = redis.NewScript(stateLua + heartbeatLua)
	leaveScript     = redis.NewScript(stateLua + leaveLua)
	dueScript       = redis.NewScript(stateLua + dueLua)
	claimScript     = redis.NewScript(stateLua + claimLua)
)

// maxItems is how many beats, leaves or claims one script call takes, so that none blocks Redis for 10 ms
// (design D13).
const maxItems = 200
