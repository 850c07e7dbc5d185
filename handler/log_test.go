package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"
	"time"
)

// TestDurationsInTheLog: one unit for all, whoever logs.
func TestDurationsInTheLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := newLogger(&out, slog.LevelInfo).With("since", time.Minute)
	log.Info("x", "took", 1234567*time.Nanosecond, slog.Group("of", "wait", -90*time.Second), "n", 7, "down_ms", 5)
	log.Debug("not at this level")
	var line struct {
		Since int `json:"since_ms"`
		Took  int `json:"took_ms"`
		Of    struct {
			Wait int `json:"wait_ms"`
		}
		N    int
		Down int `json:"down_ms"`
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line.Since != 60_000 || line.Took != 1 || line.Of.Wait != -90_000 || line.N != 7 || line.Down != 5 {
		t.Errorf("%s", &out)
	}
}
