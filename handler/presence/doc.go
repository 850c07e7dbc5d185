// Package presence is the core: what a session, a heartbeat and an event mean. It imports neither
// Redis, Cosmos DB nor net/http; the stores and the triggers depend on it, never the other way round.
//
// A session is a lease: every heartbeat moves its deadline to instant + ttl + grace. A user is online
// while one of its sessions is live. The state machine of one session:
//
//	             beat: user.online / session.started
//	(unknown) ------------------------------------------> live <--+ beat: renewed, no event
//	    ^                                                  |  +---+
//	    | 70 minutes (24 hours for the user record)        |
//	    |            claim after the deadline, or leave    |
//	    +------------------ ended <------------------------+
//	                 session.ended / user.offline
//
// Follow one heartbeat, in the direction it travels:
//
//	functions/Heartbeat/function.json   the trigger
//	triggers/heartbeat.go               request -> Beat
//	presence/heartbeat.go               validation, defaults, pace
//	deferral/store.go                   keeps it in memory while Redis is away
//	redisstore/heartbeat.go             beat -> script call
//	redisconn/lane.go, door.go          round trips that requests share, each in its turn
//	redisstore/lua/renew.lua            the usual beat: lease, deadline index, user record
//	redisstore/lua/heartbeat.lua        any beat, and the event of a start in the outbox
//
// and the offline event that follows when the beats stop:
//
//	expiry/sweep.go                     the deadline or an expired event wakes it: what is due?
//	redisstore/claim.go, lua/claim.lua  takes the session and writes the event to the outbox
//	expiry/relay.go, steps.go           outbox -> queue -> event log -> acknowledge
//	triggers/connectivity_worker.go     queue -> worker
//	worker/worker.go                    users record, status done
package presence
