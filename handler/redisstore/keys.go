package redisstore

import (
	"strconv"
	"strings"
)

// keys names every key in Redis. The keys of one partition share a hash tag, so that each script is legal on
// a cluster (design D11). A user's record is <prefix>{p3}<user>, short because there are so many of them; all
// other keys go on with a slash, which is in no id.
type keys struct {
	prefix     string
	partitions int
	// users and leases are what a partition's user records and lease keys begin with.
	users, leases []string
}

func newKeys(prefix string, partitions int) keys {
	k := keys{prefix: prefix, partitions: partitions}
	for p := range partitions {
		tagged := prefix + "{p" + strconv.Itoa(p) + "}"
		k.users, k.leases = append(k.users, tagged), append(k.leases, tagged+"/lease/")
	}
	return k
}

// partition returns the partition of a user: 0 to partitions-1, the same for ever.
func (k keys) partition(user string) int {
	hash := fnvOffset
	for i := range len(user) {
		hash = (hash ^ uint32(user[i])) * fnvPrime
	}
	return int(hash % uint32(k.partitions))
}

// FNV-1a of 32 bits, as hash/fnv has it, which would need a copy of the id.
const (
	fnvOffset uint32 = 2166136261
	fnvPrime  uint32 = 16777619
)

func (k keys) in(partition int, name string) string {
	return k.users[partition] + "/" + name
}

// shared are KEYS 1 to 4 of every script.
func (k keys) shared(p int) [4]any {
	return [4]any{k.in(p, "meta"), k.in(p, "due"), k.outbox(p), k.in(p, "quarantine")}
}

func (k keys) outbox(p int) string { return k.in(p, "outbox") }

func (k keys) user(p int, user string) string { return k.users[p] + user }

func (k keys) lease(p int, user, session string) string {
	return k.leases[p] + user + "/" + session
}

// leasePartition returns the partition of a lease key; false for any other key.
func (k keys) leasePartition(key string) (int, bool) {
	rest, ours := strings.CutPrefix(key, k.prefix+"{p")
	number, name, cut := strings.Cut(rest, "}/")
	p, err := strconv.Atoi(number)
	return p, ours && cut && err == nil && strings.HasPrefix(name, "lease/") && p >= 0 && p < k.partitions
}

// ours reports whether a key is in the state's part of the key space: <prefix>{p<number>}... or <prefix>/...
func (k keys) ours(key string) bool {
	rest, ok := strings.CutPrefix(key, k.prefix)
	number, tagged := strings.CutPrefix(rest, "{p")
	number, _, closed := strings.Cut(number, "}")
	_, err := strconv.ParseUint(number, 10, 64)
	return ok && (strings.HasPrefix(rest, "/") || tagged && closed && err == nil)
}

// partitionCount is where the number of partitions is recorded.
func (k keys) partitionCount() string { return k.prefix + "/partitions" }

// cutMember reads the deadline index's name of a session, <user>/<session>: a slash is in no id. It returns false for
// what names no session.
func cutMember(m string) (user, session string, ok bool) {
	user, session, ok = strings.Cut(m, "/")
	return user, session, ok && user != "" && session != "" && !strings.Contains(session, "/")
}
