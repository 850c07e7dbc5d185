package triggers_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write openapi.json anew from openapi.yaml")

// TestJSONContractIsMadeFromTheYAML: what the handler answers is what openapi.yaml says. The handler embeds JSON,
// so that it needs no reader of YAML.
func TestJSONContractIsMadeFromTheYAML(t *testing.T) {
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	compact, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := json.Indent(&want, bytes.TrimSpace(compact), "", " "); err != nil {
		t.Fatal(err)
	}
	want.WriteByte('\n')
	if *update {
		if err := os.WriteFile("openapi.json", want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("openapi.json is not what openapi.yaml says: go test ./handler/triggers -run JSONContract -update")
	}
}
