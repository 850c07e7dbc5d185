package triggers_test

import (
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-chi/chi/v5"

	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// contract is openapi.yaml, made strict: an answer with a field that it does not have breaks it.
type contract struct {
	doc *openapi3.T
}

var published struct {
	once sync.Once
	contract
	err error
}

// contractOf reads the document as clients get it.
func contractOf(t *testing.T) *contract {
	t.Helper()
	published.once.Do(func() {
		routes := bareRoutes()
		text := serve(routes, "GET", "/api/openapi.json", "").Body.Bytes()
		if published.doc, published.err = openapi3.NewLoader().LoadFromData(text); published.err != nil {
			return
		}
		if published.err = published.doc.Validate(t.Context()); published.err != nil {
			return
		}
		seen := map[*openapi3.Schema]bool{}
		for _, s := range published.doc.Components.Schemas {
			tighten(s.Value, seen)
		}
		for _, item := range published.doc.Paths.Map() {
			for _, op := range item.Operations() {
				for _, r := range op.Responses.Map() {
					for _, media := range r.Value.Content {
						tighten(media.Schema.Value, seen)
					}
				}
			}
		}
	})
	if published.err != nil {
		t.Fatal(published.err)
	}
	return &published.contract
}

// tighten refuses, in every object that lists its fields, those that are not listed.
func tighten(s *openapi3.Schema, seen map[*openapi3.Schema]bool) {
	if s == nil || seen[s] {
		return
	}
	seen[s] = true
	if len(s.Properties) > 0 && s.AdditionalProperties.Has == nil && s.AdditionalProperties.Schema == nil {
		no := false
		s.AdditionalProperties.Has = &no
	}
	for _, p := range s.Properties {
		tighten(p.Value, seen)
	}
	for _, p := range s.AllOf {
		tighten(p.Value, seen)
	}
	if s.Items != nil {
		tighten(s.Items.Value, seen)
	}
	if s.AdditionalProperties.Schema != nil {
		tighten(s.AdditionalProperties.Schema.Value, seen)
	}
}

// check holds one call against the contract. A request that was refused as bad input is not checked itself.
func (c *contract) check(t *testing.T, routes chi.Routes, r *http.Request, a *answer, loose bool) {
	t.Helper()
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	match := chi.NewRouteContext()
	if !routes.Match(match, r.Method, path) || a.Status == http.StatusMethodNotAllowed {
		c.checkProblem(t, a)
		return
	}
	if !strings.HasPrefix(match.RoutePattern(), "/api/") {
		return // the host's side has no contract with clients
	}
	item := c.doc.Paths.Value(match.RoutePattern())
	if item == nil || item.GetOperation(r.Method) == nil {
		t.Fatalf("%s: openapi.yaml has no %s %s", a.call, r.Method, match.RoutePattern())
	}
	params := map[string]string{}
	for i, k := range match.URLParams.Keys {
		params[k] = match.URLParams.Values[i]
		if unescaped, err := url.PathUnescape(params[k]); err == nil && r.URL.RawPath != "" {
			params[k] = unescaped
		}
	}
	input := &openapi3filter.RequestValidationInput{
		Request: r, PathParams: params,
		Route: &routers.Route{Spec: c.doc, Path: match.RoutePattern(), PathItem: item, Method: r.Method, Operation: item.GetOperation(r.Method)},
		Options: &openapi3filter.Options{
			MultiError: true, IncludeResponseStatus: true, AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
		},
	}
	if !loose && a.Status != http.StatusBadRequest && a.Status != http.StatusRequestEntityTooLarge && a.Status != http.StatusUnsupportedMediaType {
		if err := openapi3filter.ValidateRequest(t.Context(), input); err != nil {
			t.Errorf("%s: the request was taken, but openapi.yaml refuses it: %v", a.call, err)
		}
	}
	response := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: a.Status, Header: a.Header, Options: input.Options}
	if err := openapi3filter.ValidateResponse(t.Context(), response.SetBodyBytes(a.Body)); err != nil {
		t.Errorf("%s: %d %s: %v", a.call, a.Status, a.Body, err)
	}
	if documented := item.GetOperation(r.Method).Responses.Status(a.Status); documented != nil && len(documented.Value.Content) == 0 && len(a.Body) > 0 {
		t.Errorf("%s: %d has a body, openapi.yaml knows none: %s", a.call, a.Status, a.Body)
	}
	if a.Status >= http.StatusBadRequest && strings.HasPrefix(a.Header.Get("Content-Type"), "application/problem+json") {
		c.checkProblem(t, a)
	}
}

// checkProblem holds an error against RFC 9457 and the contract's schema of it.
func (c *contract) checkProblem(t *testing.T, a *answer) {
	t.Helper()
	if ct := a.Header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("%s: %d with content type %q, want application/problem+json", a.call, a.Status, ct)
	}
	var v any
	if err := json.Unmarshal(a.Body, &v); err != nil {
		t.Errorf("%s: %v in %q", a.call, err, a.Body)
		return
	}
	if err := c.doc.Components.Schemas["Problem"].Value.VisitJSON(v); err != nil {
		t.Errorf("%s: %s: %v", a.call, a.Body, err)
	}
	if p, _ := v.(map[string]any); p["status"] != float64(a.Status) || p["title"] != http.StatusText(a.Status) {
		t.Errorf("%s: status %d, body %s", a.call, a.Status, a.Body)
	}
	if a.Status == http.StatusServiceUnavailable && a.Header.Get("Retry-After") == "" {
		t.Errorf("%s: 503 without Retry-After", a.call)
	}
}

// TestContractListsTheRoutes compares the document with the router, both ways.
func TestContractListsTheRoutes(t *testing.T) {
	t.Parallel()
	documented := map[string]string{}
	for path, item := range contractOf(t).doc.Paths.Map() {
		for method, op := range item.Operations() {
			documented[method+" "+path] = op.OperationID
		}
	}
	var served []string
	err := chi.Walk(bareRoutes(), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if strings.HasPrefix(route, "/api/") && method != http.MethodHead { // it is where GET is
			served = append(served, method+" "+route)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(served)
	if want := slices.Sorted(maps.Keys(documented)); !slices.Equal(served, want) {
		t.Errorf("served\n%s\ndocumented\n%s", strings.Join(served, "\n"), strings.Join(want, "\n"))
	}
	functions := functionsByRoute(t)
	for route, id := range documented {
		if functions[route] != id {
			t.Errorf("%s has operationId %s, its function is %q", route, id, functions[route])
		}
	}
}

// TestContractSaysWhoNeedsAKey compares the document's security with each function's authLevel.
func TestContractSaysWhoNeedsAKey(t *testing.T) {
	t.Parallel()
	doc := contractOf(t).doc
	var general []string
	for _, requirement := range doc.Security {
		for name := range requirement {
			scheme := doc.Components.SecuritySchemes[name].Value
			general = append(general, scheme.In+" "+scheme.Name)
		}
	}
	if want := []string{"header x-functions-key", "query code"}; !slices.Equal(general, want) {
		t.Errorf("keys %q, want %q", general, want)
	}
	for _, f := range readFunctions(t) {
		trigger := f.trigger()
		if trigger.Type != "httpTrigger" {
			continue
		}
		for _, method := range trigger.Methods {
			if method == "head" {
				continue // the document has it with GET
			}
			op := doc.Paths.Value("/api/" + trigger.Route).GetOperation(strings.ToUpper(method))
			open := op.Security != nil && len(*op.Security) == 0
			if (trigger.AuthLevel == "anonymous") != open || open != (f.name == "Live") {
				t.Errorf("%s: authLevel %s, security in openapi.yaml %v", f.name, trigger.AuthLevel, op.Security)
			}
			if !open && op.Responses.Status(http.StatusUnauthorized) == nil {
				t.Errorf("%s needs a key, but openapi.yaml has no 401", f.name)
			}
		}
	}
}

// TestContractRefusesUnknownFields looks at every object that a request may have.
func TestContractRefusesUnknownFields(t *testing.T) {
	t.Parallel()
	for path, item := range contractOf(t).doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody == nil {
				continue
			}
			s := op.RequestBody.Value.Content["application/json"].Schema.Value
			if s.AdditionalProperties.Has == nil || *s.AdditionalProperties.Has {
				t.Errorf("%s %s takes unknown fields", method, path)
			}
			if len(op.RequestBody.Value.Content) != 1 || !op.RequestBody.Value.Required {
				t.Errorf("%s %s: the body must be required and be application/json alone", method, path)
			}
		}
	}
}

// serve runs one request without a server, and without the checks of a bench.
func serve(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	return record(h, request(method, path, body))
}

// request is one with a JSON body.
func request(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

func record(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

var discard = slog.New(slog.DiscardHandler)

// bareRoutes are the routes with nothing behind them, for tests of the routes alone.
func bareRoutes() *chi.Mux {
	return triggers.Routes(triggers.Handlers{Worker: (*worker.Worker)(nil), Log: discard})
}
