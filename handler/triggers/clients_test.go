package triggers_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/internal/npm"
)

// tool runs a command in a folder. The first run downloads what the folder pins; later ones need no network.
func tool(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// copied makes a folder of its own of files of testdata, and puts the contract into it as clients get it.
func copied(t *testing.T, from string, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	contract := serve(bareRoutes(), "GET", "/api/openapi.json", "").Body.Bytes()
	if err := os.WriteFile(filepath.Join(dir, "openapi.json"), contract, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestGeneratedGoClient: oapi-codegen makes a client of the contract, it compiles, and it can call the app.
func TestGeneratedGoClient(t *testing.T) {
	t.Parallel()
	dir := copied(t, "testdata/clients/go", "go.mod", "go.sum", "main.go", "oapi-codegen.yaml")
	tool(t, dir, "go", "tool", "oapi-codegen", "-config", "oapi-codegen.yaml", "openapi.json")
	tool(t, dir, "go", "vet", ".")
	client := filepath.Join(dir, "openapiclient")
	tool(t, dir, "go", "build", "-o", client, ".")

	b := setup(t)
	b.beat(object{"user": "listed"})
	b.beat(object{"user": "listed", "session": "tablet"})
	b.relay()
	tool(t, dir, client, b.server.URL)
}

// TestGeneratedTypeScriptClient: openapi-typescript makes types of the contract, and a client compiles with them.
func TestGeneratedTypeScriptClient(t *testing.T) {
	t.Parallel()
	from, err := filepath.Abs("testdata/clients/typescript")
	if err != nil {
		t.Fatal(err)
	}
	if err := npm.Install(from); err != nil {
		t.Fatal(err)
	}
	dir := copied(t, from, "client.ts", "tsconfig.json")
	if err := os.Symlink(filepath.Join(from, "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "node", "node_modules/openapi-typescript/bin/cli.js", "openapi.json", "-o", "api.ts")
	tool(t, dir, "node", "node_modules/typescript/bin/tsc", "-p", ".")
}

// TestContractSuitsGenerators: what generators stumble over, without running one.
func TestContractSuitsGenerators(t *testing.T) {
	t.Parallel()
	doc := contractOf(t).doc
	var names []string
	for name := range doc.Components.Schemas {
		names = append(names, name)
	}
	for name := range doc.Components.Parameters {
		names = append(names, name)
	}
	for name := range doc.Components.Responses {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
	for i := range len(names) - 1 {
		if strings.EqualFold(names[i], names[i+1]) {
			t.Errorf("two components are called %s: a generator makes one type of each", names[i])
		}
	}
	for route, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody != nil && op.RequestBody.Value.Content["application/json"].Schema.Ref == "" {
				t.Errorf("%s %s: the request has a schema without a name", method, route)
			}
			for status, response := range op.Responses.Map() {
				for media, content := range response.Value.Content {
					if strings.HasSuffix(media, "json") && content.Schema.Ref == "" {
						t.Errorf("%s %s %s: the answer has a schema without a name", method, route, status)
					}
				}
			}
		}
	}
	// With a default openapi-typescript takes a property for one that is always there. For an object without a name
	// oapi-codegen makes one up, or repeats its fields wherever it is used.
	text := serve(bareRoutes(), "GET", "/api/openapi.json", "").Body.Bytes()
	var document any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var look func(at string, v any)
	look = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if _, ok := v["default"]; ok && v["type"] != nil {
				t.Errorf("%s has a default", at)
			}
			if v["type"] == "object" && v["properties"] != nil && path.Dir(at) != "/components/schemas" {
				t.Errorf("%s is an object without a name", at)
			}
			for name, value := range v {
				look(at+"/"+name, value)
			}
		case []any:
			for _, value := range v {
				look(at+"/-", value)
			}
		}
	}
	look("", document)
}
