// Package maintenance knows when a Redis server is about to go away and when it is back: it reads what the server
// announces (the channel AzureRedisEvents, and the maintenance notifications of Redis itself) and keeps one circuit
// breaker per node, which plain failures drive too (design D9). It opens no connection of its own.
package maintenance

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Channel is the pub/sub channel on which Azure Cache for Redis announces maintenance. On Azure Managed Redis it
// can be subscribed to and stays silent.
const Channel = "AzureRedisEvents"

// Type names what happens to a node.
type Type string

// What Channel announces, in the order of one maintenance.
const (
	// Scheduled comes up to 15 minutes ahead. Its start is rough: the node may go 3 minutes earlier.
	Scheduled Type = "NodeMaintenanceScheduled"
	// Starting comes about 20 seconds ahead, with the exact start.
	Starting Type = "NodeMaintenanceStarting"
	// Start comes at the start, at most 5 seconds before the node goes. It has no start time.
	Start Type = "NodeMaintenanceStart"
	// FailoverComplete says that a replica has become the primary. Older servers call it NodeMaintenanceFailover.
	FailoverComplete Type = "NodeMaintenanceFailoverComplete"
	// Ended says that the node is back. Its start time is when it came.
	Ended Type = "NodeMaintenanceEnded"
	// ScaleComplete says that the cache has another size now.
	ScaleComplete Type = "NodeMaintenanceScaleComplete"
)

// What Redis itself announces to a client that asked for maintenance notifications. See
// https://redis.io/docs/latest/develop/clients/sch/.
const (
	Moving      Type = "MOVING"
	Migrating   Type = "MIGRATING"
	Migrated    Type = "MIGRATED"
	FailingOver Type = "FAILING_OVER"
	FailedOver  Type = "FAILED_OVER"
	SMigrating  Type = "SMIGRATING"
	SMigrated   Type = "SMIGRATED"
)

// Unknown is the type of a message that names none of the above.
const Unknown Type = "Unknown"

// wireTypes are the types as Channel spells them.
var wireTypes = map[string]Type{
	string(Scheduled): Scheduled, string(Starting): Starting, string(Start): Start, string(Ended): Ended,
	string(FailoverComplete): FailoverComplete, "NodeMaintenanceFailover": FailoverComplete, string(ScaleComplete): ScaleComplete,
}

// pushTypes are the types as Redis's own notifications spell them.
var pushTypes = map[string]Type{
	string(Moving): Moving, string(Migrating): Migrating, string(Migrated): Migrated, string(FailingOver): FailingOver,
	string(FailedOver): FailedOver, string(SMigrating): SMigrating, string(SMigrated): SMigrated,
}

const (
	// MaxRaw bounds what is read and kept of a message, in bytes.
	MaxRaw = 2048
	// maxRawType bounds RawType, in bytes.
	maxRawType = 128
)

// Event is one message about a node.
type Event struct {
	// Type is one of the constants; Unknown for anything else.
	Type Type
	// RawType is the type as the message spells it, at most 128 bytes; empty when it names none.
	RawType string
	// Start is when the maintenance starts (of Ended: when it ended), in UTC; zero when the message does not say.
	Start time.Time
	// IsReplica is true when the node is a replica, so that commands to the primary are not concerned.
	IsReplica bool
	// Address is the node's; not valid when the message does not name one.
	Address netip.Addr
	// SSLPort and NonSSLPort are the node's, 1 to 65535; 0 when the message does not name one.
	SSLPort, NonSSLPort int
	// Received is when the message came in, by our clock.
	Received time.Time
	// Raw is the message's text, its first MaxRaw bytes, in valid UTF-8.
	Raw string
}

// Valid reports whether the message names a type that this version knows. No other may open the breaker.
func (e Event) Valid() bool {
	_, azure := wireTypes[string(e.Type)]
	_, own := pushTypes[string(e.Type)]
	return azure || own
}

// Lag is how long after its start the message came in; 0 when it came in time or has no start.
func (e Event) Lag() time.Duration {
	if e.Start.IsZero() {
		return 0
	}
	return max(e.Received.Sub(e.Start), 0)
}

// String writes the event as Channel does. Parse reads it back.
func (e Event) String() string {
	kind, start, address := e.RawType, "", ""
	if e.Valid() {
		kind = string(e.Type)
	}
	if !e.Start.IsZero() {
		start = e.Start.Format("2006-01-02T15:04:05.999999999")
	}
	if e.Address.IsValid() {
		address = e.Address.String()
	}
	port := func(p int) string {
		if p == 0 {
			return ""
		}
		return strconv.Itoa(p)
	}
	replica := "False"
	if e.IsReplica {
		replica = "True"
	}
	return strings.Join([]string{
		keyType, kind, keyStart, start, keyReplica, replica, keyAddress, address,
		keySSLPort, port(e.SSLPort), keyNonSSLPort, port(e.NonSSLPort),
	}, "|")
}

// The keys of a message: key|value|key|value...
const (
	keyType       = "NotificationType"
	keyStart      = "StartTimeInUTC"
	keyReplica    = "IsReplica"
	keyAddress    = "IPAddress"
	keySSLPort    = "SSLPort"
	keyNonSSLPort = "NonSSLPort"
)

// setters read a value into an event. A value that cannot be read changes nothing.
var setters = map[string]func(*Event, string){
	keyType:        (*Event).setType,
	keyStart:       (*Event).setStart,
	"StartTimeUtc": (*Event).setStart, // as some servers' documentation has it
	keyReplica:     func(e *Event, v string) { e.IsReplica = fold(v, "true") },
	keyAddress:     (*Event).setAddress,
	keySSLPort:     func(e *Event, v string) { setPort(&e.SSLPort, v) },
	keyNonSSLPort:  func(e *Event, v string) { setPort(&e.NonSSLPort, v) },
}

// Parse reads a message of Channel. It takes what it can and never fails: what is missing or cannot be read stays
// zero, what is unknown is skipped, of a key that comes twice the last readable value counts. Keys, types and
// values may be of any case and have blanks around them. A known key always begins a pair, so a value or a pipe
// too many or too few shifts nothing.
func Parse(raw string, received time.Time) Event {
	e := Event{Type: Unknown, Received: received.UTC(), Raw: bounded(raw, MaxRaw)}
	parts := strings.Split(e.Raw, "|")
	for i := 0; i+1 < len(parts); i++ {
		set := setter(parts[i])
		if set == nil || setter(parts[i+1]) != nil {
			continue // no key of ours, or one whose value is missing
		}
		i++
		if value := strings.TrimSpace(parts[i]); value != "" {
			set(&e, value)
		}
	}
	return e
}

// setter returns what reads the value of a key, nil for a key that is not known.
func setter(key string) func(*Event, string) {
	key = strings.TrimSpace(key)
	for known, set := range setters {
		if fold(key, known) {
			return set
		}
	}
	return nil
}

// fold reports whether s is the ASCII text known, in any case. Without the length, other letters that fold to
// ASCII ones would pass.
func fold(s, known string) bool { return len(s) == len(known) && strings.EqualFold(s, known) }

func (e *Event) setType(v string) {
	e.Type, e.RawType = Unknown, strings.TrimSpace(bounded(v, maxRawType))
	for wire, t := range wireTypes {
		if fold(e.RawType, wire) {
			e.Type = t
		}
	}
}

// startLayouts are how a start may be written. Without a zone it is UTC, whatever the zone of this process. Each
// also takes a fraction of the second.
var startLayouts = []string{"2006-01-02T15:04:05", time.RFC3339, "2006-01-02T15:04:05Z0700"}

func (e *Event) setStart(v string) {
	for _, layout := range startLayouts {
		t, err := time.Parse(layout, v)
		if err != nil {
			continue
		}
		if t = t.UTC(); t.Year() >= 1 && t.Year() <= 9999 {
			e.Start = t
		}
		return
	}
}

func (e *Event) setAddress(v string) {
	v = strings.TrimSuffix(strings.TrimPrefix(v, "["), "]")
	if a, err := netip.ParseAddr(v); err == nil {
		e.Address = a.Unmap().WithZone("")
	}
}

func setPort(port *int, v string) {
	if n, err := strconv.ParseUint(v, 10, 16); err == nil && n > 0 {
		*port = int(n)
	}
}

// maxAhead is the furthest start that one of Redis's own notifications is believed to announce.
const maxAhead = 15 * time.Minute

// ParsePush reads one of Redis's own maintenance notifications: its name, a sequence number, for those that
// announce something the whole seconds until it starts, then details that are not read. It never fails, as Parse.
func ParsePush(notification []any, received time.Time) Event {
	e := Event{Type: Unknown, Received: received.UTC(), Raw: bounded(strings.TrimSuffix(fmt.Sprintln(notification...), "\n"), MaxRaw)}
	if len(notification) == 0 {
		return e
	}
	name, _ := notification[0].(string)
	e.RawType = bounded(name, maxRawType)
	t, ok := pushTypes[name]
	if !ok {
		return e
	}
	e.Type = t
	switch t {
	case Moving, Migrating, FailingOver:
		e.Start = e.Received
		if len(notification) > 2 {
			seconds, isNumber := notification[2].(int64)
			if !isNumber || seconds < 0 || seconds > int64(maxAhead/time.Second) {
				e.Start = time.Time{} // it says when, but not in a way to go by
				return e
			}
			e.Start = e.Received.Add(time.Duration(seconds) * time.Second)
		}
	}
	return e
}

// bounded returns the first n bytes of s as valid UTF-8 that is no longer than that.
func bounded(s string, n int) string {
	s = cut(s, n)
	return cut(strings.ToValidUTF8(s, string(utf8.RuneError)), n)
}

// cut returns at most n bytes of s, without the first bytes of a character whose last are left out.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for i := n; i > n-utf8.UTFMax && i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:n] // no text: the middle of no character
}
