package redisstore

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/presence"
)

// unlikely finds numbers in a record that no script writes: such times and durations do not fit their types.
var unlikely = regexp.MustCompile(`(?m)\d{16}|^[+~][^,]*,([^,]*,[^,]*,[^,]*,)?[^,]{9}`)

// FuzzParseRecord: no record makes the reader panic, and what it reads it reads again from its own words.
func FuzzParseRecord(f *testing.F) {
	for _, record := range []string{
		"a1700000000123\n+", "a1700000000123\n+86400000", "a1700000000123\n~5000,3600",
		"a1700000001124,1000,1700000000100,g1 g|2~\n+-3,10,,1001,5,12000,9007199254740990,{\"a\":[1,\"b, c\"]}\n~5,3600,tab:~1=+-|@._,,600,,,\n-z,-20,17,3",
		"a1700000000124,1,1700000000121,\n-,-3,,2",
		"a1700000000124,,1700000000121,g\n-a,-3,,2\n-b,-900,5,4",
		"a\n-,1700000000000,,5",
		"a", "2,1,,,\n", "", "a5,,,\n+a,b", "a-5,,,\n+,,,,,,,x", "a1,,,\n\n+,-1,,,,,,", "a1,,,\n+1,2,3", "a1,2,3",
	} {
		f.Add(record)
	}
	f.Fuzz(func(t *testing.T, record string) {
		u, ok := parseRecord("u", record)
		if (u.Status == presence.Online) != (len(u.Sessions) > 0) && ok {
			t.Fatalf("%q: %s with %d sessions", record, u.Status, len(u.Sessions))
		}
		if !ok || u.Epoch <= 0 || u.LastSeen.IsZero() || unlikely.MatchString(record) {
			return
		}
		again, ok := parseRecord("u", formatRecord(u))
		if diff := cmp.Diff(u, again); !ok || diff != "" {
			t.Fatalf("%q, written as %q (-first +again):\n%s", record, formatRecord(u), diff)
		}
	})
}

// formatRecord writes what parseRecord reads of a user, without the short forms.
func formatRecord(u presence.User) string {
	var b strings.Builder
	seen := u.LastSeen.UnixMilli()
	fmt.Fprintf(&b, "a%d,%d,%d,%s", u.Epoch, u.Epoch-u.Since.UnixMilli(), seen, strings.Join(u.Groups, " "))
	for _, s := range u.Sessions {
		fmt.Fprintf(&b, "\n+%d,%d,%s,%d,%d,%d,,%s", seen-u.Epoch, s.TTL/time.Second, s.ID, u.Epoch-s.StartEpoch, s.Grace/time.Second,
			s.ExpiresAt.UnixMilli()-seen, s.Meta)
	}
	return b.String()
}

// FuzzUnpack: no outbox entry makes the reader panic, and what it reads it reads again from its own words.
func FuzzUnpack(f *testing.F) {
	for _, lines := range [][]string{
		{
			"1", "user.online", "alice", "default", "1700000000123", "beat", "1700000000123", "", "1700000000123", "1700000000120", "LIFE", "0", "1",
			"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "g1 g|2~", "default,1700000000123,45,0", `{"a":[1,"b, c"]}`,
		},
		{
			"1", "session.started", "alice", "tab:~1=+-|@._", "1700000000124", "beat", "1700000000123", "", "1700000000124", "1700000000124", "LIFE", "0", "2",
			"", "g1", "default,1700000000123,45,0 tab:~1=+-|@._,1700000000124,3600,600", "",
		},
		{
			"1", "session.ended", "alice", "default", "1700000045123", "expired", "1700000000123", "1700000045123", "1700000045123", "1700000000124", "LIFE", "0", "3",
			"", "", "tab:~1=+-|@._,1700000000124,3600,600", "{}",
		},
		{"1", "user.offline", "alice", "a", "1700000045124", "left", "1700000000124", "", "1700000045123", "1700000045123", "LIFE", "1", "4", "", "", "", ""},
		{"1", "user.offline", "alice", "a", "x", "left", "1", "", "1", "1", "LIFE", "1", "4", "", "", "a,b", "{"},
		{"2"},
		{"2", "redis.key.expired", "1700000000123", "LIFE", "0", "7", "cart:7"},
		{"2", "redis.key.expired", "1700000000123", "LIFE", "3", "8", "a\nb\x00\uFFFD"},
		{"2", "redis.key.expired", "0", "LIFE", "0", "7", "k"},
		{"2", "redis.key.expired", "1700000000123", "LIFE", "0", "x", "k"},
		{"2", "redis.key.expired", "1700000000123", "LIFE", "0", "7", ""},
		{"2", "redis.key.expired", "1700000000123", "LIFE", "0", "7", "\xff"},
		{"2", "user.online", "1700000000123", "LIFE", "0", "7", "k"},
	} {
		f.Add(strings.Join(lines, "\n"))
	}
	f.Fuzz(func(t *testing.T, packed string) {
		e, err := unpack(packed)
		if err != nil {
			return
		}
		if _, ok := presence.PartitionKeyOf(e.Event.ID); !ok || (e.Event.Key == "") != e.Event.Type.Valid() {
			t.Fatalf("%q is %+v", packed, e.Event)
		}
		basis := strings.Split(packed, "\n")[6]
		again, err := unpack(pack(e, basis))
		if err != nil {
			t.Fatalf("%q, written as %q: %v", packed, pack(e, basis), err)
		}
		e.fault = "" // it was mended
		if diff := cmp.Diff(e, again, cmp.AllowUnexported(Entry{})); diff != "" {
			t.Fatalf("%q, written as %q (-first +again):\n%s", packed, pack(e, basis), diff)
		}
	})
}

// pack writes what unpack reads.
func pack(entry Entry, basis string) string {
	e := entry.Event
	if e.Type == presence.KeyExpired {
		return fmt.Sprintf("2\n%s\n%d\n%s\n%d\n%d\n%s", e.Type, e.Epoch, e.Life, e.Generation, entry.N, e.Key)
	}
	ms := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return strconv.FormatInt(t.UnixMilli(), 10)
	}
	var sessions []string
	for _, s := range e.Sessions {
		sessions = append(sessions, fmt.Sprintf("%s,%d,%d,%d", s.Session, s.StartEpoch, s.TTLSeconds, s.GraceSeconds))
	}
	return strings.Join([]string{
		"1", string(e.Type), e.User, e.Session, strconv.FormatInt(e.Epoch, 10), string(e.Reason), basis,
		ms(e.Deadline), ms(e.DetectedAt), ms(e.LastSeen), e.Life, strconv.FormatInt(e.Generation, 10), strconv.FormatInt(entry.N, 10),
		e.Traceparent, strings.Join(e.Groups, " "), strings.Join(sessions, " "), string(e.Meta),
	}, "\n")
}
