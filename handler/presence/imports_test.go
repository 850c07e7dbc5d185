package presence_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestCoreImportsNoTechnology: the core is the standard library, package fault and golang.org/x/sync, without net/http.
func TestCoreImportsNoTechnology(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(out)) {
		if path != "userconnectivity/handler/presence" && path != "userconnectivity/handler/fault" && !strings.HasPrefix(path, "golang.org/x/sync/") {
			t.Errorf("presence depends on %s", path)
		}
	}
	out, err = exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(out)) {
		if path == "net" || strings.HasPrefix(path, "net/http") || path == "database/sql" {
			t.Errorf("presence depends on %s", path)
		}
	}
}
