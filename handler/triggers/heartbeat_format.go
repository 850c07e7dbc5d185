package triggers

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// This file reads what gateways make of heartbeats: README.md lists the forms.

// maxWrapping is how deep heartbeats may be wrapped, as a JSON string in the data of a CloudEvent in an array.
const maxWrapping = 4

// heartbeatsIn returns the heartbeats of a queue message, each by itself and not decoded yet: one heartbeat, an array of
// them (in an array again, too), the body of POST /api/heartbeats, or one of these on each line; each as it is, as a JSON string that holds it,
// or as the data of a CloudEvent, of an Event Grid event or of a device's message in IoT Hub's event. A byte order mark
// and blanks around it do not count. The error says what is wrong with the whole message.
func heartbeatsIn(body string) ([]jsontext.Value, error) {
	items, err := unwrap([]byte(body), 0)
	if err != nil {
		return nil, err
	}
	if err := checkCount("", len(items), true); err != nil {
		return nil, errors.New(detailOf(err))
	}
	return items, nil
}

// unwrap returns the heartbeats of a text.
func unwrap(text []byte, depth int) ([]jsontext.Value, error) {
	text = bytes.TrimSpace(withoutMark(bytes.TrimSpace(text)))
	switch {
	case len(text) == 0:
		return nil, errors.New("it is empty: a message has one heartbeat, an array of heartbeats, or one on each line")
	case depth > maxWrapping:
		return nil, fmt.Errorf("heartbeats are wrapped more than %d times", maxWrapping)
	}
	if lines := linesOf(text); lines != nil {
		return unwrapEach(lines, depth), nil
	}
	switch text[0] {
	case '"':
		var inner string
		if err := unmarshal(text, &inner); err != nil {
			return nil, errors.New(detailOf(err))
		}
		if !holdsJSON([]byte(inner)) {
			return nil, errors.New("it is a JSON string that holds neither a JSON object nor an array")
		}
		return unwrap([]byte(inner), depth+1)
	case '[':
		var items []jsontext.Value
		if err := unmarshal(text, &items); err != nil {
			return nil, errors.New(detailOf(err))
		}
		return unwrapEach(items, depth), nil
	case '{':
		if content, err := contentOf(text); err != nil || content != nil {
			if err != nil {
				return nil, err
			}
			return unwrap(content, depth+1)
		}
	}
	return []jsontext.Value{text}, nil
}

// linesOf returns the lines of a text that has a JSON value on its first one and something on others, nil for any
// other text: one value may be written over several lines.
func linesOf(text []byte) []jsontext.Value {
	first, _, more := bytes.Cut(text, []byte("\n"))
	if !more || !holdsJSON(first) || !jsontext.Value(first).IsValid() {
		return nil
	}
	var lines []jsontext.Value
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, line)
		}
	}
	return lines
}

// unwrapEach unwraps the items that are wrapped. One that cannot be unwrapped is left as it is: it is no heartbeat, and
// is rejected by itself.
func unwrapEach(items []jsontext.Value, depth int) []jsontext.Value {
	all := make([]jsontext.Value, 0, len(items))
	for _, item := range items {
		if inner, err := unwrap(item, depth+1); err == nil {
			all = append(all, inner...)
		} else {
			all = append(all, item)
		}
	}
	return all
}

// holdsJSON reports whether a text may be a JSON value that is a heartbeat or holds some.
func holdsJSON(text []byte) bool {
	text = bytes.TrimSpace(withoutMark(bytes.TrimSpace(text)))
	return len(text) > 0 && (text[0] == '{' || text[0] == '[' || text[0] == '"')
}

// wrappers are members of the objects that wrap heartbeats; a heartbeat has none of them.
var wrappers = [][]byte{[]byte(`"heartbeats"`), []byte(`"specversion"`), []byte(`"eventType"`), []byte(`"systemProperties"`)}

// contentOf returns what an object wraps, nil for an object that wraps nothing, such as a heartbeat.
func contentOf(text []byte) ([]byte, error) {
	named := false
	for _, name := range wrappers {
		named = named || bytes.Contains(text, name)
	}
	var members map[string]jsontext.Value
	if !named || json.Unmarshal(text, &members) != nil || members["user"] != nil {
		return nil, nil
	}
	switch {
	case members["heartbeats"] != nil:
		var body struct {
			Heartbeats jsontext.Value `json:"heartbeats"`
		}
		if err := unmarshal(text, &body); err != nil {
			return nil, errors.New(detailOf(err))
		}
		if body.Heartbeats.Kind() != '[' {
			return nil, errors.New("/heartbeats must be an array")
		}
		return body.Heartbeats, nil
	case members["specversion"] != nil && members["data_base64"] != nil:
		return decoded("the data_base64 of the CloudEvent", members["data_base64"])
	case members["specversion"] != nil:
		return present("the CloudEvent has no data", members["data"])
	case members["eventType"] != nil:
		return present("the event has no data", members["data"])
	case members["systemProperties"] != nil && members["body"].Kind() == '"':
		if content, err := decoded("the body of the device's message", members["body"]); err == nil && holdsJSON(content) {
			return content, nil
		}
		return members["body"], nil
	case members["systemProperties"] != nil:
		return present("the device's message has no body", members["body"])
	}
	return nil, nil
}

func present(absent string, content jsontext.Value) ([]byte, error) {
	if content == nil || content.Kind() == 'n' {
		return nil, errors.New(absent)
	}
	return content, nil
}

// decoded decodes a JSON string that holds base64.
func decoded(what string, value jsontext.Value) ([]byte, error) {
	var content []byte
	var text string
	err := json.Unmarshal(value, &text)
	if err == nil {
		content, err = base64.StdEncoding.DecodeString(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s is not base64", what)
	}
	return content, nil
}
