// Package health is how the parts of the app tell how they are: what is wrong, and what mends it.
package health

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Status is how well a part is.
type Status string

// The states of a part. An Unknown one cannot be looked at from here, which is no fault.
const (
	OK       Status = "ok"
	Unknown  Status = "unknown"
	Degraded Status = "degraded"
	Down     Status = "down"
)

// worse orders the states.
var worse = map[Status]int{OK: 0, Unknown: 1, Degraded: 2, Down: 3}

// Part is the state of one part of the app. The zero value is OK. In JSON it is one object: status, detail, ageMs, and
// beside them what is in Figures.
type Part struct {
	Status Status
	// Detail says what is wrong and what mends it; several are separated by "; ".
	Detail string
	// Age is how old the look is that this comes from.
	Age time.Duration
	// Figures is a struct or map that JSON makes an object of, nil for none. It has no status, detail or ageMs.
	Figures any
}

// Add tells of something that is wrong and how bad it is. A part is as well as the worst of what was added.
func (p *Part) Add(s Status, detail string) {
	if worse[s] > worse[p.Status] {
		p.Status = s
	}
	p.Note(detail)
}

// Warn adds what degrades the part, each once. Texts that are empty are left out.
func (p *Part) Warn(details ...string) {
	for _, d := range details {
		if d != "" && !strings.Contains(p.Detail, d) {
			p.Add(Degraded, d)
		}
	}
}

// Note adds something to know that is no fault.
func (p *Part) Note(detail string) {
	if p.Detail != "" && detail != "" {
		p.Detail += "; "
	}
	p.Detail += detail
}

// MarshalJSON writes the part with its figures as one object.
func (p Part) MarshalJSON() ([]byte, error) {
	if p.Status == "" {
		p.Status = OK
	}
	text, err := plain(struct {
		Status Status `json:"status"`
		Detail string `json:"detail,omitempty"`
		AgeMs  int64  `json:"ageMs"`
	}{p.Status, p.Detail, p.Age.Milliseconds()})
	if err != nil || p.Figures == nil {
		return text, err
	}
	figures, err := plain(p.Figures)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(figures, []byte("{")) {
		return nil, fmt.Errorf("the figures of a part are %T, of which JSON makes no object", p.Figures)
	}
	if string(figures) == "{}" {
		return text, nil
	}
	return append(append(text[:len(text)-1], ','), figures[1:]...), nil
}

// plain is JSON in which <group> stays readable: it is no part of a page.
func plain(v any) ([]byte, error) {
	var text bytes.Buffer
	encode := json.NewEncoder(&text)
	encode.SetEscapeHTML(false)
	err := encode.Encode(v)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), err
}

// Worst returns the state of an app with these parts: that of the worst of them. A part that is unknown is no reason
// to worry.
func Worst(parts map[string]Part) Status {
	worst := OK
	for _, p := range parts {
		if p.Status != Unknown && worse[p.Status] > worse[worst] {
			worst = p.Status
		}
	}
	return worst
}
