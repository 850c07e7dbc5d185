// Package config reads the settings: environment variables, each named once here. All that is wrong is
// reported together, with an example; no secret is ever part of a message.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// Secret is a setting that is never printed.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[redacted]" }

// LogValue hides the secret in logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Config is every setting of the handler.
type Config struct {
	// Port is where the handler listens, on 127.0.0.1 (FUNCTIONS_CUSTOMHANDLER_PORT, set by the host).
	Port int
	// RedisURL is redis://[user:password@]host:port/db, or rediss:// for TLS (REDIS_URL).
	RedisURL Secret
	// Partitions of the state (REDIS_PARTITIONS, 1 to 1024, default 16). It cannot be changed later.
	Partitions int
	// LeaseKeys keeps a key with a time to live for each session (LEASE_KEYS, on or off, default on).
	LeaseKeys bool
	// SessionTTL is the ttl of beats that name none (SESSION_TTL_SECONDS, 5 to 3600, default 45).
	SessionTTL time.Duration
	// EventsQueue is the queue or topic that events are sent to (EVENTS_QUEUE, default connectivity-events).
	EventsQueue string
	// EventTypePrefix is in front of each CloudEvents type (EVENT_TYPE_PREFIX, default userconnectivity.).
	EventTypePrefix string
	// MaxDelivery is the max delivery count of the queues (MAX_DELIVERY_COUNT, 1 to 2000, default 10).
	MaxDelivery int
	// LocalQueueURL is the embedded broker of the local host (LOCAL_QUEUE_URL).
	LocalQueueURL string
	// DataDir is where the embedded event log lives (DATA_DIR, default .data).
	DataDir string
	// LogLevel is the least level that is logged (LOG_LEVEL: debug, info, warn, error; default info).
	LogLevel slog.Level
	// App and Instance name this process in Redis, in events and in logs (WEBSITE_SITE_NAME, WEBSITE_INSTANCE_ID).
	App, Instance string
	// Listener runs the expiration listener's loop, unless AzureWebJobs_ExpirationListener_Disabled is true.
	Listener bool
}

// FromEnv reads the settings with lookup, such as os.LookupEnv.
func FromEnv(lookup func(string) (string, bool)) (Config, error) {
	r := reader{lookup: lookup}
	c := Config{
		Port:            r.integer("FUNCTIONS_CUSTOMHANDLER_PORT", 8080, 0, 65535),
		RedisURL:        Secret(r.text("REDIS_URL", "")),
		Partitions:      r.integer("REDIS_PARTITIONS", 16, 1, 1024),
		LeaseKeys:       r.onOff("LEASE_KEYS", true),
		SessionTTL:      r.seconds("SESSION_TTL_SECONDS", presence.DefaultTTL, presence.MinTTL, presence.MaxTTL),
		EventsQueue:     r.matching("EVENTS_QUEUE", queue.ConnectivityEvents, queueName, "connectivity-events"),
		EventTypePrefix: r.matching("EVENT_TYPE_PREFIX", "userconnectivity.", typePrefix, "com.example.presence."),
		MaxDelivery:     r.integer("MAX_DELIVERY_COUNT", 10, 1, 2000),
		LocalQueueURL:   r.url("LOCAL_QUEUE_URL"),
		DataDir:         r.text("DATA_DIR", ".data"),
		LogLevel:        r.level("LOG_LEVEL"),
		App:             r.text("WEBSITE_SITE_NAME", "user-connectivity"),
		Instance:        r.text("WEBSITE_INSTANCE_ID", hostname()),
		Listener:        !r.boolean("AzureWebJobs_ExpirationListener_Disabled", false),
	}
	if err := errors.Join(r.problems...); err != nil {
		return Config{}, fmt.Errorf("settings: %w", err)
	}
	return c, nil
}

var (
	// queueName is what Service Bus takes as the name of a queue or topic.
	queueName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,258}$`)
	// typePrefix is a reverse-DNS prefix, as CloudEvents asks for.
	typePrefix = regexp.MustCompile(`^[A-Za-z0-9._-]{0,100}$`)
)

func hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// reader reads settings and collects what is wrong with them.
type reader struct {
	lookup   func(string) (string, bool)
	problems []error
}

func (r *reader) text(name, usual string) string {
	if v, ok := r.lookup(name); ok && strings.TrimSpace(v) != "" {
		return strings.TrimSpace(v)
	}
	return usual
}

func (r *reader) wrong(name, want, example string) {
	r.problems = append(r.problems, fmt.Errorf("%s must be %s, for example %s=%s", name, want, name, example))
}

func (r *reader) integer(name string, usual, least, most int) int {
	text := r.text(name, strconv.Itoa(usual))
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		r.wrong(name, fmt.Sprintf("a whole number between %d and %d", least, most), strconv.Itoa(usual))
		return usual
	}
	return n
}

func (r *reader) seconds(name string, usual, least, most time.Duration) time.Duration {
	return time.Duration(r.integer(name, int(usual/time.Second), int(least/time.Second), int(most/time.Second))) * time.Second
}

func (r *reader) onOff(name string, usual bool) bool {
	switch strings.ToLower(r.text(name, map[bool]string{true: "on", false: "off"}[usual])) {
	case "on":
		return true
	case "off":
		return false
	}
	r.wrong(name, "on or off", "on")
	return usual
}

func (r *reader) boolean(name string, usual bool) bool {
	v, err := strconv.ParseBool(strings.ToLower(r.text(name, strconv.FormatBool(usual))))
	if err != nil {
		r.wrong(name, "true or false", "true")
		return usual
	}
	return v
}

func (r *reader) matching(name, usual string, pattern *regexp.Regexp, example string) string {
	v := r.text(name, usual)
	if !pattern.MatchString(v) {
		r.wrong(name, "a name that matches "+pattern.String(), example)
		return usual
	}
	return v
}

func (r *reader) url(name string) string {
	v := r.text(name, "")
	if v == "" {
		return ""
	}
	if u, err := url.Parse(v); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		r.wrong(name, "an http URL", "http://127.0.0.1:7071/local/queues")
		return ""
	}
	return v
}

func (r *reader) level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(r.text(name, "info"))); err != nil {
		r.wrong(name, "debug, info, warn or error", "info")
	}
	return l
}
