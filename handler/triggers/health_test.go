package triggers_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/health"
	"userconnectivity/handler/triggers"
)

func TestLiveAsksNobody(t *testing.T) {
	t.Parallel()
	w := serve(bareRoutes(), "GET", "/api/live", "")
	if w.Code != 200 || w.Body.String() != `{"status":"ok"}` || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestHealthIsThatOfTheWorstPart(t *testing.T) {
	t.Parallel()
	ok, unknown := health.Part{Status: health.OK}, health.Part{Status: health.Unknown, Detail: "it runs elsewhere"}
	degraded, down := health.Part{Status: health.Degraded, Detail: "wait"}, health.Part{Status: health.Down, Detail: "start it"}
	for _, tt := range []struct {
		name   string
		parts  parts
		code   int
		status string
	}{
		{"all_well", parts{"redis": ok, "queue": ok}, 200, "ok"},
		{"one_unknown", parts{"redis": ok, "clock": unknown}, 200, "ok"},
		{"one_degraded", parts{"redis": ok, "queue": degraded, "eventLog": ok}, 200, "degraded"},
		{"one_down", parts{"redis": down, "queue": degraded, "eventLog": ok}, 503, "down"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(h *triggers.Handlers) { h.Health = tt.parts })
			var got struct {
				Status, Version string
				Parts           map[string]object
			}
			b.get("/api/health").into(tt.code, &got)
			if got.Status != tt.status || got.Version != "test" || len(got.Parts) != 7 || got.Parts["redis"]["status"] != string(tt.parts["redis"].Status) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestPublishedContract compares the document that is served with the file.
func TestPublishedContract(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	served, err := openapi3.NewLoader().LoadFromData(setup(t).get("/api/openapi.json").Body)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(served)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Error(diff)
	}
}
