package redisstore

// What one turn may have, so that Redis works on it for a few milliseconds: beats in bulk, leaves in bulk, users to read,
// partitions to look at, partitions with up to maxItems sessions to claim each, and foreign keys.
const (
	beatsATurn      = 400
	leavesATurn     = 200
	readsATurn      = 500
	partitionsATurn = 64
	claimsATurn     = 2
	foreignATurn    = 200
)
