package localhost

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func TestRouter(t *testing.T) {
	t.Parallel()
	var functions []*function
	add := func(name, template string, methods ...string) {
		r, err := parseRoute("api", template)
		if err != nil {
			t.Fatal(err)
		}
		f := &function{name: name, route: r, trigger: binding{Type: "httpTrigger", Methods: &methods}}
		if len(methods) == 1 && methods[0] == "all" {
			f.trigger.Methods = nil
		}
		functions = append(functions, f)
	}
	add("rest", "{*path}", "get")
	add("user", "users/{user}", "get", "delete")
	add("query", "users/query", "post")
	add("me", "users/me", "get")
	add("session", "users/{user}/sessions/{session?}", "get")
	add("none", "none")
	add("all", "all", "all")
	router := newRouter(functions)
	for request, want := range map[string]string{
		"GET /api/users/bob":            "user",
		"GET /api/users/bob/":           "user",
		"GET /API/Users/bob":            "user",
		"DELETE /api/users/me":          "user", // the literal does not allow it
		"GET /api/users/me":             "me",
		"POST /api/users/query":         "query",
		"GET /api/users/query":          "user",
		"POST /api/users/bob":           "",
		"GET /api/users/x%2Fy":          "user",
		"GET /api/users/./a/../bob":     "user",
		"GET /api/users/bob/sessions":   "session",
		"GET /api/users/bob/sessions/1": "session",
		"GET /api/users//sessions/1":    "rest",
		"GET /api/else/where":           "rest",
		"POST /api/else":                "",
		"POST /api/none":                "",
		"PATCH /api/all":                "all",
		"GET /users/bob":                "",
		"GET /":                         "",
		"GET //api/users/bob":           "",
		"GET /api//users/bob":           "rest",
		"GET /api/users/bob//":          "rest",
		"GET /api/users/bob/.":          "user",
		"GET /api/users/bob/x/..":       "user",
		"GET /api/users/%2E%2E/users/b": "user",
		"GET /api/users/%25zz":          "user",
	} {
		method, target, _ := strings.Cut(request, " ")
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Fatal(err)
		}
		path, err := decodePath(u)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if f := router.find(method, path); f != nil {
			got = f.name
		}
		if got != want {
			t.Errorf("%s: %q, want %q", request, got, want)
		}
	}
}

func TestPathsAsTheHostSendsThem(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"/api/x%2Fy/z%20w": "/api/x%252Fy/z%20w",
		"/api/x%2fy":       "/api/x%252fy",
		"/api/%41%7E%2B":   "/api/A~+",
		"/api/100%25":      "/api/100%25",
		"/api/a%3Fb%23c":   "/api/a%3Fb%23c",
		"/api/caf%C3%A9":   "/api/caf%C3%A9",
		"/api/a/../b/./c":  "/api/b/c",
		"/api/a/":          "/api/a/",
		"/":                "/",
		"/api/%25zz":       "/api/%25zz",
		"/api/%ff":         "/api/%25ff",
		"/api/%C3(":        "/api/%25C3(",
		"/api/a%E2%82":     "/api/a%25E2%2582",
		"/api/%E2%82%AC":   "/api/%E2%82%AC",
		"/api/a/.":         "/api/a/",
		"/api/a/b/..":      "/api/a/",
		"/../api":          "/api",
		"//api/a":          "//api/a",
	} {
		u, err := url.ParseRequestURI(in)
		if err != nil {
			t.Fatal(err)
		}
		path, err := decodePath(u)
		if err != nil {
			t.Fatal(err)
		}
		out := url.URL{}
		out.Path, out.RawPath = encodePath(path)
		if got := fmt.Sprint(out.RequestURI()); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if _, err := decodePath(&url.URL{Path: "/api/\x00", RawPath: "/api/%00"}); err == nil {
		t.Error("a NUL in a path is accepted")
	}
}
