package maintenance

import (
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// received is later than every start in these tests, so that nothing depends on it by chance.
var received = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

// parsed compares everything but the text and the time of receipt.
func parsed(t *testing.T, raw string, want Event) {
	t.Helper()
	want.Received, want.Raw = received, raw
	if want.Type == "" {
		want.Type = Unknown
	}
	if diff := cmp.Diff(want, Parse(raw, received), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("%q:\n%s", raw, diff)
	}
}

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}

func address(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestParse(t *testing.T) {
	t.Parallel()
	starting := Event{Type: Starting, RawType: string(Starting), Start: at("2021-03-02T23:26:57Z"), SSLPort: 15001, NonSSLPort: 13001}
	named := func(raw string) Event { return Event{Type: Unknown, RawType: raw} }
	tests := map[string]struct {
		raw  string
		want Event
	}{
		// What is known to be sent.
		"starting without an address": {"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2021-03-02T23:26:57|IsReplica|False|IPAddress||SSLPort|15001|NonSSLPort|13001", starting},
		"failover by its old name": {
			"NotificationType|NodeMaintenanceFailover|StartTimeInUTC||IsReplica|False|IPAddress||SSLPort|15001|NonSSLPort|13001",
			Event{Type: FailoverComplete, RawType: "NodeMaintenanceFailover", SSLPort: 15001, NonSSLPort: 13001},
		},
		"failover by its old name, of a replica": {
			"NotificationType|NodeMaintenanceFailover|StartTimeInUTC||IsReplica|True|IPAddress||SSLPort|15001|NonSSLPort|13001",
			Event{Type: FailoverComplete, RawType: "NodeMaintenanceFailover", IsReplica: true, SSLPort: 15001, NonSSLPort: 13001},
		},
		"failover by its new name": {
			"NotificationType|NodeMaintenanceFailoverComplete|StartTimeInUTC||IsReplica|False|IPAddress|52.158.249.185|SSLPort|15001|NonSSLPort|13001",
			Event{Type: FailoverComplete, RawType: string(FailoverComplete), Address: address("52.158.249.185"), SSLPort: 15001, NonSSLPort: 13001},
		},
		"the documented starting": {
			"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2020-10-14T16:26:10|IsReplica|False|IPAddress|52.158.249.185|SSLPort|15001|NonSSLPort|13001",
			Event{Type: Starting, RawType: string(Starting), Start: at("2020-10-14T16:26:10Z"), Address: address("52.158.249.185"), SSLPort: 15001, NonSSLPort: 13001},
		},
		"the documented ended": {
			"NotificationType|NodeMaintenanceEnded|StartTimeInUTC|2020-10-14T16:27:42|IsReplica|True|IPAddress|52.158.249.185|SSLPort|15001|NonSSLPort|13001",
			Event{Type: Ended, RawType: string(Ended), Start: at("2020-10-14T16:27:42Z"), IsReplica: true, Address: address("52.158.249.185"), SSLPort: 15001, NonSSLPort: 13001},
		},
		"scheduled":      {"NotificationType|NodeMaintenanceScheduled|StartTimeInUTC|2020-10-14T16:35:57", Event{Type: Scheduled, RawType: string(Scheduled), Start: at("2020-10-14T16:35:57Z")}},
		"start":          {"NotificationType|NodeMaintenanceStart|StartTimeInUTC||IsReplica|False", Event{Type: Start, RawType: string(Start)}},
		"scale complete": {"NotificationType|NodeMaintenanceScaleComplete", Event{Type: ScaleComplete, RawType: string(ScaleComplete)}},
		"other spellings of the keys": {
			"NotificationType|NodeMaintenanceEnded|StartTimeUtc|2020-10-14T16:27:42|IsReplica|True|IpAddress|10.0.0.4",
			Event{Type: Ended, RawType: string(Ended), Start: at("2020-10-14T16:27:42Z"), IsReplica: true, Address: address("10.0.0.4")},
		},

		// What may come damaged.
		"bad values":                {"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2021-03-02T23:26:57|IsReplica|j|IPAddress||SSLPort|char|NonSSLPort|char", Event{Type: Starting, RawType: string(Starting), Start: starting.Start}},
		"a junk pair in the middle": {"NotificationType|NodeMaintenanceStarting|somejunkkey|somejunkvalue|StartTimeInUTC|2021-03-02T23:26:57|IsReplica|False|IPAddress||SSLPort|15999|NonSSLPort|139991", Event{Type: Starting, RawType: string(Starting), Start: starting.Start, SSLPort: 15999}},
		"a junk pair and an address": {
			"NotificationType|NodeMaintenanceStarting|somejunkkey|somejunkvalue|StartTimeInUTC|2021-03-02T23:26:57|IsReplica|False|IPAddress|127.0.0.1|SSLPort|15999|NonSSLPort|-5",
			Event{Type: Starting, RawType: string(Starting), Start: starting.Start, Address: address("127.0.0.1"), SSLPort: 15999},
		},
		"a junk part, no pair":       {"NotificationType|NodeMaintenanceStarting|junk|StartTimeInUTC|2021-03-02T23:26:57|SSLPort|15001|NonSSLPort|13001", starting},
		"a pipe too many":            {"NotificationType|NodeMaintenanceStarting||StartTimeInUTC|2021-03-02T23:26:57||SSLPort|15001|NonSSLPort|13001", starting},
		"an empty type":              {"NotificationType||StartTimeInUTC|2021-03-02T23:26:57|IsReplica|False|IPAddress||SSLPort|15001|NonSSLPort|13001", Event{Start: starting.Start, SSLPort: 15001, NonSSLPort: 13001}},
		"a type that is missing":     {"NotificationType|StartTimeInUTC|2021-03-02T23:26:57|SSLPort|15001|NonSSLPort|13001", Event{Start: starting.Start, SSLPort: 15001, NonSSLPort: 13001}},
		"all values missing":         {"NotificationType|StartTimeInUTC|IsReplica|IPAddress|SSLPort|NonSSLPort", Event{}},
		"an address that is missing": {"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2021-03-02T23:26:57|IPAddress|SSLPort|15001|NonSSLPort|13001", starting},
		"a stray leading pipe":       {"|NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2021-03-02T23:26:57|SSLPort|15001|NonSSLPort|13001", starting},
		"an odd trailing part":       {"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2021-03-02T23:26:57|SSLPort|15001|NonSSLPort|13001|IPAddress", starting},
		"an odd trailing junk part":  {"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2021-03-02T23:26:57|SSLPort|15001|NonSSLPort|13001|junk", starting},
		"another case, and blanks": {
			" notificationtype | NODEMAINTENANCESTARTING |starttimeinutc| 2021-03-02T23:26:57\t|SSLPORT|15001 |nonsslport|\r\n13001\n",
			Event{Type: Starting, RawType: "NODEMAINTENANCESTARTING", Start: starting.Start, SSLPort: 15001, NonSSLPort: 13001},
		},
		"duplicates: the last": {
			"NotificationType|NodeMaintenanceStart|NotificationType|NodeMaintenanceEnded|SSLPort|1|SSLPort|2|IsReplica|True|IsReplica|False",
			Event{Type: Ended, RawType: string(Ended), SSLPort: 2},
		},
		"duplicates: the last readable":        {"NotificationType|NodeMaintenanceEnded|NotificationType||SSLPort|1|SSLPort|x|IPAddress|::1|IPAddress|?", Event{Type: Ended, RawType: string(Ended), SSLPort: 1, Address: address("::1")}},
		"duplicates: a type that is not known": {"NotificationType|NodeMaintenanceStart|NotificationType|Nonsense", named("Nonsense")},
		"nothing":                              {"", Event{}},
		"no pipes":                             {"NodeMaintenanceStart", Event{}},
		"only pipes":                           {"||||", Event{}},
		"no type after its key":                {"NotificationType|", Event{}},
		"no start after its key":               {"StartTimeInUTC|", Event{}},
		"no replica after its key":             {"IsReplica|", Event{}},
		"no port after its key":                {"SSLPort|", Event{}},
		"no port after a key and blank":        {"NonSSLPort |", Event{}},
		"a type that is not known":             {"NotificationType|NodeMaintenanceStarting1", named("NodeMaintenanceStarting1")},
		"a type that only folds":               {"NotificationType|NodeMaintenanceſtart", named("NodeMaintenanceſtart")},
		"a type of Redis's own":                {"NotificationType|MOVING", named("MOVING")},
		"numbers":                              {"1|2|3", Event{}},
		"a start that is none":                 {"StartTimeInUTC|thisisthestart", Event{}},

		// Times.
		"UTC with Z":           {"StartTimeInUTC|2021-03-02T23:26:57Z", Event{Start: starting.Start}},
		"an offset":            {"StartTimeInUTC|2021-03-03T00:26:57+01:00", Event{Start: starting.Start}},
		"an offset, no colon":  {"StartTimeInUTC|2021-03-02T18:26:57-0500", Event{Start: starting.Start}},
		"a fraction":           {"StartTimeInUTC|2021-03-02T23:26:57.1234567", Event{Start: at("2021-03-02T23:26:57.1234567Z")}},
		"a fraction with Z":    {"StartTimeInUTC|2021-03-02T23:26:57.5Z", Event{Start: at("2021-03-02T23:26:57.5Z")}},
		"no such day":          {"StartTimeInUTC|2021-02-30T23:26:57", Event{}},
		"a day alone":          {"StartTimeInUTC|2021-03-02", Event{}},
		"no time":              {"StartTimeInUTC|0001-01-01T00:00:00", Event{}},
		"before all years":     {"StartTimeInUTC|0000-12-31T00:00:00", Event{}},
		"after all years":      {"StartTimeInUTC|9999-12-31T23:59:59-01:00", Event{}},
		"the end of all years": {"StartTimeInUTC|9999-12-31T23:59:59", Event{Start: at("9999-12-31T23:59:59Z")}},

		// Addresses and ports.
		"IPv6":                 {"IPAddress|2001:db8::5|SSLPort|6380", Event{Address: address("2001:db8::5"), SSLPort: 6380}},
		"IPv6 in brackets":     {"IPAddress|[2001:db8::5]", Event{Address: address("2001:db8::5")}},
		"IPv6 with a zone":     {"IPAddress|fe80::1%eth0", Event{Address: address("fe80::1")}},
		"IPv4 written as IPv6": {"IPAddress|::ffff:10.0.0.4", Event{Address: address("10.0.0.4")}},
		"a name":               {"IPAddress|cache.example.net", Event{}},
		"four numbers too big": {"IPAddress|10.0.0.256", Event{}},
		"the smallest port":    {"SSLPort|1|NonSSLPort|0", Event{SSLPort: 1}},
		"the largest port":     {"SSLPort|65535|NonSSLPort|65536", Event{SSLPort: 65535}},
		"ports that are none":  {"SSLPort|1.5|NonSSLPort|99999999999999999999", Event{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parsed(t, tt.raw, tt.want)
		})
	}
}

func TestParseInAnyZone(t *testing.T) {
	// Not parallel: the zone is the process's.
	local := time.Local
	t.Cleanup(func() { time.Local = local })
	for _, zone := range []*time.Location{time.UTC, time.FixedZone("east", 2*3600), time.FixedZone("west", -9*3600)} {
		time.Local = zone
		for _, text := range []string{"2026-07-01T10:00:00", "2026-07-01T12:00:00+02:00"} {
			e := Parse("StartTimeInUTC|"+text, received.In(zone))
			if want := at("2026-07-01T10:00:00Z"); !e.Start.Equal(want) || e.Start.Location() != time.UTC || e.Received.Location() != time.UTC {
				t.Errorf("in zone %s: %s is %s, received %s; want %s", zone, text, e.Start, e.Received, want)
			}
		}
	}
}

func TestRawIsBoundedText(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string]string{
		"long":                    "NotificationType|NodeMaintenanceEnded|x|" + strings.Repeat("y", 10_000),
		"long and not UTF-8":      "NotificationType|NodeMaintenanceEnded|x|" + strings.Repeat("\x80\xff|", 10_000),
		"cut inside a character":  "NotificationType|NodeMaintenanceEnded|x|" + strings.Repeat("y", MaxRaw-41) + "€€€",
		"not UTF-8 in a value":    "NotificationType|NodeMaintenanceEnded|IPAddress|\xff\xfe|x|\xc3",
		"not UTF-8 around a type": "\xff|NotificationType|NodeMaintenanceEnded|\xff",
	} {
		e := Parse(raw, received)
		if e.Type != Ended || len(e.Raw) > MaxRaw || !utf8.ValidString(e.Raw) || len(e.Raw) < min(len(raw), MaxRaw)-3 {
			t.Errorf("%s: type %s, %d of %d bytes kept", name, e.Type, len(e.Raw), len(raw))
		}
	}
	if e := Parse("NotificationType|"+strings.Repeat("€", 500), received); len(e.RawType) > maxRawType || !utf8.ValidString(e.RawType) || e.RawType == "" {
		t.Errorf("raw type of %d bytes: %q", len(e.RawType), e.RawType)
	}
	if e := Parse(strings.Repeat("\x80", 5000), received); e.Raw != "\ufffd" {
		t.Errorf("%q kept of junk", e.Raw)
	}
}

func TestLag(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		start time.Time
		want  time.Duration
	}{
		{time.Time{}, 0},
		{received, 0},
		{received.Add(time.Second), 0},
		{received.Add(-1500 * time.Millisecond), 1500 * time.Millisecond},
		{time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC), 1<<63 - 1},
	} {
		if got := (Event{Start: tt.start, Received: received}).Lag(); got != tt.want {
			t.Errorf("lag of a start at %s: %s, want %s", tt.start, got, tt.want)
		}
	}
}

func TestParsePush(t *testing.T) {
	t.Parallel()
	in := func(d time.Duration) time.Time { return received.Add(d) }
	tests := map[string]struct {
		message []any
		want    Event
	}{
		"moving":                 {[]any{"MOVING", int64(5), int64(30), "10.0.0.9:6379"}, Event{Type: Moving, RawType: "MOVING", Start: in(30 * time.Second), Raw: "MOVING 5 30 10.0.0.9:6379"}},
		"moving to nowhere":      {[]any{"MOVING", int64(5), int64(30), nil}, Event{Type: Moving, RawType: "MOVING", Start: in(30 * time.Second), Raw: "MOVING 5 30 <nil>"}},
		"migrating":              {[]any{"MIGRATING", int64(6), int64(2), []any{"1"}}, Event{Type: Migrating, RawType: "MIGRATING", Start: in(2 * time.Second), Raw: "MIGRATING 6 2 [1]"}},
		"migrated":               {[]any{"MIGRATED", int64(7)}, Event{Type: Migrated, RawType: "MIGRATED", Raw: "MIGRATED 7"}},
		"failing over":           {[]any{"FAILING_OVER", int64(8), int64(0)}, Event{Type: FailingOver, RawType: "FAILING_OVER", Start: in(0), Raw: "FAILING_OVER 8 0"}},
		"failing over, bare":     {[]any{"FAILING_OVER"}, Event{Type: FailingOver, RawType: "FAILING_OVER", Start: in(0), Raw: "FAILING_OVER"}},
		"failed over":            {[]any{"FAILED_OVER", int64(9)}, Event{Type: FailedOver, RawType: "FAILED_OVER", Raw: "FAILED_OVER 9"}},
		"slots move":             {[]any{"SMIGRATING", int64(10), "1-5"}, Event{Type: SMigrating, RawType: "SMIGRATING", Raw: "SMIGRATING 10 1-5"}},
		"slots moved":            {[]any{"SMIGRATED", int64(11)}, Event{Type: SMigrated, RawType: "SMIGRATED", Raw: "SMIGRATED 11"}},
		"a time that is none":    {[]any{"MOVING", int64(5), "soon"}, Event{Type: Moving, RawType: "MOVING", Raw: "MOVING 5 soon"}},
		"a time before":          {[]any{"MOVING", int64(5), int64(-1)}, Event{Type: Moving, RawType: "MOVING", Raw: "MOVING 5 -1"}},
		"a time far away":        {[]any{"MOVING", int64(5), int64(1) << 62}, Event{Type: Moving, RawType: "MOVING", Raw: "MOVING 5 4611686018427387904"}},
		"another notification":   {[]any{"message", "channel", "text"}, Event{Type: Unknown, RawType: "message", Raw: "message channel text"}},
		"one of Azure's types":   {[]any{string(Start)}, Event{Type: Unknown, RawType: string(Start), Raw: string(Start)}},
		"a name that is no text": {[]any{int64(1)}, Event{Type: Unknown, Raw: "1"}},
		"nothing":                {nil, Event{Type: Unknown}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.want.Received = received
			got := ParsePush(tt.message, received)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
			if got.Valid() != (tt.want.Type != Unknown) {
				t.Errorf("valid: %v", got.Valid())
			}
		})
	}
}

// FuzzParse: no text makes the parser fail, grow, or read a type that is not there; and what it writes it reads back.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "|", "NotificationType|", "1|2|3", "NotificationType|NodeMaintenanceStarting1", "NotificationType||StartTimeInUTC|2021-03-02T23:26:57",
		"NotificationType|NodeMaintenanceStarting|StartTimeInUTC|2020-10-14T16:26:10|IsReplica|False|IPAddress|52.158.249.185|SSLPort|15001|NonSSLPort|13001",
		"NotificationType|NodeMaintenanceEnded|StartTimeInUTC|2020-10-14T16:27:42.5Z|IsReplica|True|IPAddress|2001:db8::1|SSLPort|15001|NonSSLPort|13001",
		"NotificationType|NodeMaintenanceFailover|StartTimeInUTC||IsReplica|True|IPAddress||SSLPort|15001|NonSSLPort|13001",
		"|NotificationType|nodemaintenancestart|StartTimeUtc|9999-12-31T23:59:59-23:00|junk|IpAddress|[::1]|\xff|", strings.Repeat("€|", 1000),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		e := Parse(raw, received)
		if len(e.Raw) > MaxRaw || len(e.RawType) > maxRawType || !utf8.ValidString(e.Raw) || !utf8.ValidString(e.RawType) {
			t.Fatalf("not bounded text: %q", e.Raw)
		}
		if e.SSLPort < 0 || e.SSLPort > 65535 || e.NonSSLPort < 0 || e.NonSSLPort > 65535 || e.Lag() < 0 || e.Start.Location() != time.UTC {
			t.Fatalf("out of range: %+v", e)
		}
		if e.Valid() {
			text, named := strings.ToLower(raw), false
			for wire, kind := range wireTypes {
				named = named || kind == e.Type && strings.Contains(text, strings.ToLower(wire))
			}
			if !named || !strings.Contains(text, "notificationtype") {
				t.Fatalf("%s out of %q", e.Type, raw)
			}
		}
		again := Parse(e.String(), received)
		if again.String() != e.String() {
			t.Fatalf("%q is read back as %q", e, again)
		}
		again.Raw, again.RawType = e.Raw, e.RawType // a known type is written by its usual name
		if diff := cmp.Diff(e, again, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Fatal(diff)
		}
	})
}
