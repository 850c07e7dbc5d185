package main

import (
	"io"
	"log/slog"
	"time"
)

// newLogger writes one JSON object a line. Every duration is in milliseconds, under a name that ends in "_ms": who logs
// passes a time.Duration, and whoever reads need not know which line has which unit.
func newLogger(out io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration {
			return slog.Int64(a.Key+"_ms", a.Value.Duration().Round(time.Millisecond).Milliseconds())
		}
		return a
	}}))
}
