package cosmosfake

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// decode reads one JSON object and keeps its numbers as they are written.
func decode(text []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var body map[string]any
	if err := d.Decode(&body); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || body == nil {
		return nil, errors.New("not one object")
	}
	return body, nil
}

// lookup follows a path of property names.
func lookup(body any, path []string) (any, bool) {
	for _, name := range path {
		object, ok := body.(map[string]any)
		if !ok {
			return nil, false
		}
		if body, ok = object[name]; !ok {
			return nil, false
		}
	}
	return body, true
}

// filter is a conjunction of comparisons, the part of the query language that is served.
type filter []comparison

type comparison struct {
	path     []string
	operator string
	value    any
}

var (
	queryForm      = regexp.MustCompile(`(?is)^\s*select\s+\*\s+from\s+c(?:\s+where\s+(.+?))?(?:\s+order\s+by\s+c\.([\w.]+)(?:\s+(asc|desc))?)?\s*$`)
	conditionForm  = regexp.MustCompile(`(?is)^\s*from\s+c\s+where\s+(.+?)\s*$`)
	comparisonForm = regexp.MustCompile(`(?s)^\s*c\.([\w.]+)\s*(=|!=|<=|>=|<|>)\s*(@\w+|'[^'\\]*'|"[^"\\]*"|-?\d+(?:\.\d+)?|true|false|null)\s*$`)
	conjunction    = regexp.MustCompile(`(?i)\s+and\s+`)
)

func parseFilter(text string, parameters map[string]any) (filter, error) {
	var f filter
	for _, part := range conjunction.Split(text, -1) {
		m := comparisonForm.FindStringSubmatch(part)
		if m == nil {
			return nil, fmt.Errorf("syntax error near %q", part)
		}
		c := comparison{path: strings.Split(m[1], "."), operator: m[2]}
		switch literal := m[3]; {
		case literal[0] == '@':
			value, ok := parameters[literal]
			if !ok {
				return nil, fmt.Errorf("parameter %s is not supplied", literal)
			}
			c.value = value
		case literal[0] == '\'' || literal[0] == '"':
			c.value = literal[1 : len(literal)-1]
		case literal == "null":
		case literal == "true" || literal == "false":
			c.value = literal == "true"
		default:
			c.value = json.Number(literal)
		}
		f = append(f, c)
	}
	return f, nil
}

// matches is false for a property that is missing or of another type, whatever the operator.
func (f filter) matches(body map[string]any) bool {
	for _, c := range f {
		value, ok := lookup(body, c.path)
		if !ok {
			return false
		}
		order, ok := compare(value, c.value)
		if !ok {
			return false
		}
		holds := map[string]bool{
			"=": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0,
		}[c.operator]
		if !holds {
			return false
		}
	}
	return true
}

func compare(a, b any) (order int, comparable bool) {
	switch a := a.(type) {
	case json.Number:
		if b, ok := b.(json.Number); ok {
			x, err := a.Float64()
			y, err2 := b.Float64()
			return cmp.Compare(x, y), err == nil && err2 == nil
		}
	case string:
		if b, ok := b.(string); ok {
			return cmp.Compare(a, b), true
		}
	case bool:
		if b, ok := b.(bool); ok {
			return cmp.Compare(size(b), size(a)), true // "true" is shorter than "false"
		}
	case nil:
		return 0, b == nil
	}
	return 0, false
}

// continuation is where the next page begins: after the document with this value of the order and this rid.
type continuation struct {
	Query string          `json:"query"`
	Value json.RawMessage `json:"value"`
	RID   int64           `json:"rid"`
}

func (s *Server) query(r *request) response {
	var q struct {
		Query      string `json:"query"`
		Parameters []struct {
			Name  string `json:"name"`
			Value any    `json:"value"`
		} `json:"parameters"`
	}
	decoder := json.NewDecoder(bytes.NewReader(r.body))
	decoder.UseNumber()
	if err := decoder.Decode(&q); err != nil {
		return failed(http.StatusBadRequest, 0, "the body is not a query")
	}
	m := queryForm.FindStringSubmatch(q.Query)
	if m == nil {
		return failed(http.StatusBadRequest, 0, "syntax error, or a query that is not served: %s", q.Query)
	}
	parameters := map[string]any{}
	for _, p := range q.Parameters {
		parameters[p.Name] = p.Value
	}
	var where filter
	if m[1] != "" {
		var err error
		if where, err = parseFilter(m[1], parameters); err != nil {
			return failed(http.StatusBadRequest, 0, "%v", err)
		}
	}
	found := slices.DeleteFunc(s.living(r), func(d *document) bool { return !where.matches(d.body) })
	order, descending := strings.Split(m[2], "."), strings.EqualFold(m[3], "desc")
	value := func(d *document) any {
		v, _ := lookup(d.body, order)
		return v
	}
	before := func(a any, aRID int64, b any, bRID int64) int {
		if m[2] != "" {
			if c, ok := compare(a, b); ok && c != 0 {
				if descending {
					return -c
				}
				return c
			}
		}
		return cmp.Compare(aRID, bRID)
	}
	slices.SortFunc(found, func(a, b *document) int { return before(value(a), a.rid, value(b), b.rid) })

	if token := r.Header.Get("x-ms-continuation"); token != "" {
		var after continuation
		if err := json.Unmarshal([]byte(token), &after); err != nil || after.Query != q.Query {
			return failed(http.StatusBadRequest, 0, "the continuation token is malformed")
		}
		var last any
		d := json.NewDecoder(bytes.NewReader(after.Value))
		d.UseNumber()
		if err := d.Decode(&last); err != nil {
			return failed(http.StatusBadRequest, 0, "the continuation token is malformed")
		}
		found = slices.DeleteFunc(found, func(d *document) bool { return before(value(d), d.rid, last, after.RID) <= 0 })
	}
	limit := s.config.MaxPage
	if n, err := strconv.Atoi(r.Header.Get("x-ms-max-item-count")); err == nil && n > 0 {
		limit = min(limit, n)
	}
	answer := response{status: http.StatusOK, header: map[string]string{}, charge: queryCharge}
	if len(found) > limit {
		found = found[:limit]
		last := found[limit-1]
		text, err := json.Marshal(value(last))
		if err != nil {
			return failed(http.StatusInternalServerError, 0, "%v", err)
		}
		token, err := json.Marshal(continuation{Query: q.Query, Value: text, RID: last.rid})
		if err != nil {
			return failed(http.StatusInternalServerError, 0, "%v", err)
		}
		answer.header["x-ms-continuation"] = string(token)
	}
	documents := []any{}
	for _, d := range found {
		documents = append(documents, d.body)
		answer.charge += readCharge(d.body)
	}
	answer.header["x-ms-item-count"] = strconv.Itoa(len(documents))
	answer.body = map[string]any{"_rid": r.container.ID, "Documents": documents, "_count": len(documents)}
	return answer
}

// maxPatch is how many operations one patch may have.
const maxPatch = 10

func (s *Server) patch(r *request) response {
	var p struct {
		Condition  string `json:"condition"`
		Operations []struct {
			Op    string          `json:"op"`
			Path  string          `json:"path"`
			Value json.RawMessage `json:"value"`
		} `json:"operations"`
	}
	if err := json.Unmarshal(r.body, &p); err != nil || len(p.Operations) == 0 || len(p.Operations) > maxPatch {
		return failed(http.StatusBadRequest, 0, "a patch has 1 to %d operations", maxPatch)
	}
	d := s.find(r.container, r.pk, r.path[5])
	if d == nil {
		return failed(http.StatusNotFound, 0, "Entity with the specified id does not exist in the system.")
	}
	if !r.matches(d) {
		return failed(http.StatusPreconditionFailed, 0, "One of the specified pre-condition is not met")
	}
	if p.Condition != "" {
		m := conditionForm.FindStringSubmatch(p.Condition)
		if m == nil {
			return failed(http.StatusBadRequest, 0, "syntax error in the condition %q", p.Condition)
		}
		condition, err := parseFilter(m[1], nil)
		if err != nil {
			return failed(http.StatusBadRequest, 0, "%v", err)
		}
		if !condition.matches(d.body) {
			return failed(http.StatusPreconditionFailed, 1110, "the condition of the patch is not met")
		}
	}
	text, err := json.Marshal(d.body)
	if err != nil {
		return failed(http.StatusInternalServerError, 0, "%v", err)
	}
	body, err := decode(text) // a copy: a patch is applied whole or not at all
	if err != nil {
		return failed(http.StatusInternalServerError, 0, "%v", err)
	}
	for _, o := range p.Operations {
		if slices.Contains([]string{"/id", r.container.Key.Paths[0], "/_rid", "/_self", "/_etag", "/_ts"}, o.Path) {
			return failed(http.StatusBadRequest, 0, "%s cannot be patched", o.Path)
		}
		var value any
		if o.Op != "remove" {
			v := json.NewDecoder(bytes.NewReader(o.Value))
			v.UseNumber()
			if err := v.Decode(&value); err != nil {
				return failed(http.StatusBadRequest, 0, "the operation on %s has no value", o.Path)
			}
		}
		if err := applyPatch(body, o.Op, o.Path, value); err != nil {
			return failed(http.StatusBadRequest, 0, "%v", err)
		}
	}
	if text, err = json.Marshal(body); err != nil {
		return failed(http.StatusInternalServerError, 0, "%v", err)
	}
	return r.answer(http.StatusOK, s.store(r, r.path[5], body), replaceCharge(text))
}

// applyPatch does one operation: add, set, replace and remove on properties, add and set on arrays.
func applyPatch(body map[string]any, op, path string, value any) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("path %q does not begin with a slash", path)
	}
	names := strings.Split(path[1:], "/")
	last := names[len(names)-1]
	parent, ok := lookup(body, names[:len(names)-1])
	if !ok {
		return fmt.Errorf("the parent of %s does not exist", path)
	}
	if list, ok := parent.([]any); ok {
		if last != "-" || op != "add" && op != "set" {
			return fmt.Errorf("only appending to the array at %s is served", path)
		}
		return setAt(body, names[:len(names)-1], append(slices.Clone(list), value))
	}
	object, ok := parent.(map[string]any)
	if !ok {
		return fmt.Errorf("the parent of %s is neither object nor array", path)
	}
	_, exists := object[last]
	switch op {
	case "add", "set":
		object[last] = value
	case "replace", "remove":
		if !exists {
			return fmt.Errorf("%s does not exist", path)
		}
		if op == "replace" {
			object[last] = value
		} else {
			delete(object, last)
		}
	default:
		return fmt.Errorf("operation %q is not served", op)
	}
	return nil
}

func setAt(body map[string]any, names []string, value any) error {
	parent, ok := lookup(body, names[:len(names)-1])
	object, isObject := parent.(map[string]any)
	if !ok || !isObject {
		return errors.New("the array is not a property")
	}
	object[names[len(names)-1]] = value
	return nil
}
