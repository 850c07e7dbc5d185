package presence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const idAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~:@|+=-"

var idByte = func() (ok [256]bool) {
	for _, c := range []byte(idAlphabet) {
		ok[c] = true
	}
	return
}()

// CheckID returns what is wrong with a user, session or group id, "" when nothing is.
func CheckID(id string) string {
	switch {
	case id == "":
		return "must not be empty"
	case len(id) > MaxIDLength:
		return fmt.Sprintf("must have at most %d characters, has %d", MaxIDLength, len(id))
	case id == "." || id == "..":
		return "must not be . or .."
	}
	for i := 0; i < len(id); i++ {
		if !idByte[id[i]] {
			return "may only have the characters A-Z a-z 0-9 . _ ~ : @ | + = -"
		}
	}
	return ""
}

// checks collects what is wrong with one input.
type checks []FieldError

func (c *checks) add(pointer, detail string) {
	if detail != "" {
		*c = append(*c, FieldError{Pointer: pointer, Detail: detail})
	}
}

func (c *checks) id(pointer, id string) { c.add(pointer, CheckID(id)) }

func (c *checks) seq(seq *int64) {
	if seq != nil && (*seq < 0 || *seq > MaxSeq) {
		c.add("/seq", fmt.Sprintf("must be between 0 and %d", int64(MaxSeq)))
	}
}

func (c *checks) seconds(pointer string, d, least, most time.Duration) {
	if d < least || d > most || d%time.Second != 0 {
		c.add(pointer, fmt.Sprintf("must be a whole number of seconds between %d and %d", least/time.Second, most/time.Second))
	}
}

func (c *checks) groups(groups []string) {
	if len(groups) > MaxGroups {
		c.add("/groups", fmt.Sprintf("must have at most %d items, has %d", MaxGroups, len(groups)))
		return
	}
	seen := make(map[string]bool, len(groups))
	for i, g := range groups {
		pointer := fmt.Sprintf("/groups/%d", i)
		c.id(pointer, g)
		if seen[g] {
			c.add(pointer, "repeats a group")
		}
		seen[g] = true
	}
}

// compactMeta returns meta without white space, or what is wrong with it.
func compactMeta(meta json.RawMessage) (json.RawMessage, string) {
	var b bytes.Buffer
	if err := json.Compact(&b, meta); err != nil {
		return nil, "must be a JSON object"
	}
	switch {
	case !strings.HasPrefix(b.String(), "{"):
		return nil, "must be a JSON object"
	case b.Len() > MaxMetaBytes:
		return nil, fmt.Sprintf("must have at most %d bytes as compact JSON, has %d", MaxMetaBytes, b.Len())
	}
	return b.Bytes(), ""
}
