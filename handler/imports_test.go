package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestHandlerShipsNoTools: what runs, measures and tests the product on a developer's machine is not in the deployed
// binary, neither our own packages nor the modules that they alone need.
func TestHandlerShipsNoTools(t *testing.T) {
	t.Parallel()
	ours := []string{"azuretest", "cmd/", "cosmosstore/cosmosfake", "eventlog/eventlogtest", "internal/", "loadtest", "localhost", "servicebus/amqpstub"}
	theirs := []string{
		"github.com/HdrHistogram/", "github.com/adhocore/gronx", "github.com/alicebob/miniredis/", "github.com/getkin/kin-openapi",
		"github.com/go-analyze/", "github.com/goccy/go-yaml", "github.com/google/go-cmp", "github.com/schollz/progressbar/",
		"github.com/tsenart/vegeta/", "go.uber.org/goleak", "google.golang.org/grpc", "testing",
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	paths := strings.Fields(string(out))
	if !slices.Contains(paths, "userconnectivity/handler/triggers") {
		t.Fatalf("the list of packages is not that of the handler: %v", paths)
	}
	for _, path := range paths {
		own, isOwn := strings.CutPrefix(path, "userconnectivity/handler/")
		if isOwn && slices.ContainsFunc(ours, func(tool string) bool { return strings.HasPrefix(own, tool) }) ||
			slices.ContainsFunc(theirs, func(tool string) bool {
				return path == tool || strings.HasPrefix(path, tool) && strings.Contains(tool, ".")
			}) {
			t.Errorf("the handler depends on %s, which does not ship", path)
		}
	}
}
