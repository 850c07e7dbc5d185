package presence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"userconnectivity/handler/fault"
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
type checks []fault.FieldError

func (c *checks) add(pointer, detail string) {
	if detail != "" {
		*c = append(*c, fault.FieldError{Pointer: pointer, Detail: detail})
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

// meta compacts the meta object of a beat and checks that every later stage keeps what it means: the event log takes 128
// levels of nesting and reads numbers as float64, and so do most readers of the queue.
func (c *checks) meta(meta *json.RawMessage) {
	var b bytes.Buffer
	switch err := json.Compact(&b, *meta); {
	case err != nil || b.Bytes()[0] != '{':
		c.add("/meta", "must be a JSON object")
	case b.Len() > MaxMetaBytes:
		c.add("/meta", fmt.Sprintf("must have at most %d bytes as compact JSON, has %d", MaxMetaBytes, b.Len()))
	default:
		*meta = b.Bytes()
		c.add("/meta", checkValues(*meta))
	}
}

// checkValues returns what is wrong with the nesting and the numbers of a compact JSON text, "" when nothing is.
func checkValues(text []byte) string {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case b == '"':
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case b == '{' || b == '[':
			if depth++; depth > MaxMetaDepth {
				return fmt.Sprintf("must be nested at most %d levels deep, itself included", MaxMetaDepth)
			}
		case b == '}' || b == ']':
			depth--
		case b == '-' || '0' <= b && b <= '9':
			from := i
			for strings.IndexByte("0123456789.eE+-", text[i+1]) >= 0 { // the object's end follows at the latest
				i++
			}
			if wrong := checkNumber(string(text[from : i+1])); wrong != "" {
				return wrong
			}
		}
	}
	return ""
}

// checkNumber returns what is wrong with a JSON number that is kept as a float64, "" when nothing is: one that is
// infinite there, or zero though it is not, or a whole number that becomes another one.
func checkNumber(literal string) string {
	if !strings.ContainsAny(literal, ".eE") {
		if n, err := strconv.ParseInt(literal, 10, 64); err != nil || n < -MaxSeq || n > MaxSeq {
			return fmt.Sprintf("must have whole numbers between %d and %d only: send a larger one as a string", -int64(MaxSeq), int64(MaxSeq))
		}
		return ""
	}
	f, err := strconv.ParseFloat(literal, 64)
	mantissa, _, _ := strings.Cut(strings.ToLower(literal), "e")
	if err != nil || f == 0 && strings.ContainsAny(mantissa, "123456789") {
		return fmt.Sprintf("must have numbers that a float64 holds only, up to %g: send another one as a string", math.MaxFloat64)
	}
	return ""
}
