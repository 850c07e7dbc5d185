package localhost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// RedisMode says which Redis the handler gets.
type RedisMode string

// The modes of Redis.
const (
	// RedisAuto passes on REDIS_URL or REDIS_HOST when one is set; else it starts a redis-server or valkey-server from
	// the PATH or, where there is none, an embedded miniredis.
	RedisAuto RedisMode = "auto"
	// RedisServer starts a redis-server, whatever is set.
	RedisServer RedisMode = "server"
	// RedisMini starts an embedded miniredis, whatever is set.
	RedisMini RedisMode = "mini"
	// RedisNone starts none; the settings go to the handler as they are.
	RedisNone RedisMode = "none"
)

const (
	redisStartTimeout = time.Minute // loading a large append-only file takes its time
	redisStopTimeout  = 10 * time.Second
	redisProbePause   = 20 * time.Millisecond
	minRedisPause     = 200 * time.Millisecond
	maxRedisPause     = 5 * time.Second
	maxLastWords      = 3 // lines: what is wrong, and what comes of it
)

// redis is the Redis of the handler.
type redis interface {
	url() string // "" when the settings decide
	pid() int    // 0 when it is no process of its own
	describe() string
	stop() // returns when it has ended
	kill()
}

// startRedis starts the Redis that the options ask for and returns when it answers. onRestart is called when a
// server of our own answers again after it ended by itself.
func startRedis(ctx context.Context, o Options, settings map[string]string, log *slog.Logger, onRestart func()) (redis, error) {
	mode := o.Redis
	if mode == RedisAuto || mode == "" {
		switch _, err := findRedisServer(); {
		case settings["REDIS_URL"] != "" || settings["REDIS_HOST"] != "":
			mode = RedisNone
		case err == nil:
			mode = RedisServer
		default:
			mode = RedisMini
		}
	}
	switch mode {
	case RedisServer:
		return startRedisServer(ctx, filepath.Join(o.DataDir, "redis"), !o.NoRedisNotifications, log, onRestart)
	case RedisMini:
		return startMiniRedis(filepath.Join(o.DataDir, "redis"), log)
	case RedisNone:
		return externalRedis{}, nil
	}
	return nil, fmt.Errorf("redis mode %q is not auto, server, mini or none", o.Redis)
}

// externalRedis is whatever the settings name. The host opens no connection to it.
type externalRedis struct{}

func (externalRedis) url() string      { return "" }
func (externalRedis) pid() int         { return 0 }
func (externalRedis) describe() string { return "the one that REDIS_URL or REDIS_HOST names" }
func (externalRedis) stop()            {}
func (externalRedis) kill()            {}

// miniRedis lives in the host, so that it survives the handler.
type miniRedis struct {
	*miniredis.Miniredis
	left   string // what a redis-server kept and is not loaded, "" for nothing
	ending chan struct{}
	ended  chan struct{}
}

// miniTick is how often keys of the embedded Redis expire. Its own clock would sort all keys at every command,
// which a thousand users are enough to feel.
const miniTick = 100 * time.Millisecond

// startMiniRedis starts the embedded Redis. It says so when it leaves data in dir alone, which it cannot read.
func startMiniRedis(dir string, log *slog.Logger) (redis, error) {
	m := miniRedis{Miniredis: miniredis.NewMiniRedis(), ending: make(chan struct{}), ended: make(chan struct{})}
	if hasRedisData(dir) {
		m.left = fmt.Sprintf("the sessions that %s kept in %s are NOT loaded; with that server on the PATH they are", madeBy(dir), dir)
		log.Warn("the embedded Redis starts empty: " + m.left)
	}
	if err := m.StartAddr("127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("start miniredis: %w", err)
	}
	go m.expire()
	return m, nil
}

// expire lets the keys' time pass until the embedded Redis stops.
func (m miniRedis) expire() {
	defer close(m.ended)
	tick := time.NewTicker(miniTick)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-m.ending:
			return
		case now := <-tick.C:
			m.FastForward(now.Sub(last))
			last = now
		}
	}
}

func (m miniRedis) url() string { return "redis://" + m.Addr() }
func (m miniRedis) pid() int    { return 0 }
func (m miniRedis) describe() string {
	text := m.url() + " (embedded miniredis: NOT persisted, sessions end with this host; with a redis-server on the PATH they are kept)"
	if m.left != "" {
		text += "\n        " + m.left
	}
	return text
}

func (m miniRedis) stop() {
	close(m.ending)
	<-m.ended
	m.Close()
}
func (m miniRedis) kill() {}

// redisServer is a redis-server of our own. It is started again when it ends by itself.
type redisServer struct {
	program redisProgram
	keys    int // that it had when it first answered
	args    []string
	dir     string
	port    int
	log     *slog.Logger
	// onRestart is called when the server answers again after it ended by itself.
	onRestart func()

	cancel context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	child  *child
}

func startRedisServer(ctx context.Context, dir string, notifications bool, log *slog.Logger, onRestart func()) (*redisServer, error) {
	path, err := findRedisServer()
	if err != nil {
		return nil, fmt.Errorf("find redis-server: %w", err)
	}
	program, err := readProgram(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := program.mayLoad(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of redis-server: %w", err)
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &redisServer{program: program, dir: dir, port: port, log: log, onRestart: onRestart, ended: make(chan struct{})}
	s.args = []string{
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--protected-mode", "yes", "--daemonize", "no",
		"--dir", dir, "--logfile", "redis.log", "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
	}
	if notifications {
		s.args = append(s.args, "--notify-keyspace-events", "Ex")
	} else {
		// As on a server that lost the setting and does not allow CONFIG.
		s.args = append(s.args, "--notify-keyspace-events", "", "--rename-command", "CONFIG", "")
	}
	hadData, before := hasRedisData(dir), madeBy(dir)
	if err := s.start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, redisStartTimeout)
	defer cancel()
	err = s.waitReady(ctx)
	if err == nil {
		s.keys, err = countKeys(ctx, port)
	}
	if err == nil {
		err = program.sign(dir)
	}
	switch {
	case err == nil:
	case hadData && ctx.Err() == nil:
		s.child.kill()
		return nil, fmt.Errorf("%w: %w", program.cannotLoad(dir, before), err)
	default:
		s.child.kill()
		return nil, fmt.Errorf("start %s: %w", program.path, err)
	}
	if hadData && s.keys == 0 && before != program.String() {
		log.Warn("Redis is empty, though another server kept data here: look whether it expired", "kept_by", before, "loaded_by", program.String(), "folder", dir)
	}
	supervising, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.supervise(supervising)
	return s, nil
}

func (s *redisServer) start() error {
	c, err := startChild(exec.Command(s.program.path, s.args...))
	if err != nil {
		return fmt.Errorf("start redis-server: %w", err)
	}
	s.mu.Lock()
	s.child = c
	s.mu.Unlock()
	return nil
}

// waitReady waits until PING is answered with PONG, also while the append-only file is loaded.
func (s *redisServer) waitReady(ctx context.Context) error {
	for {
		if err := ping(ctx, s.port); err == nil {
			return nil
		}
		select {
		case <-s.child.done:
			return fmt.Errorf("it ended: %s%s", s.child.state, s.lastWords())
		default:
		}
		if !wait(ctx, redisProbePause) {
			return ctx.Err()
		}
	}
}

func ping(ctx context.Context, port int) error {
	reply, err := askRedis(ctx, port, "PING")
	if err == nil && reply != "+PONG" {
		return errors.New(reply)
	}
	return err
}

// countKeys returns how many keys the server has.
func countKeys(ctx context.Context, port int) (int, error) {
	reply, err := askRedis(ctx, port, "DBSIZE")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimPrefix(reply, ":"))
	if err != nil {
		return 0, fmt.Errorf("count the keys of Redis: it answers %q", reply)
	}
	return n, nil
}

// askRedis sends one command and returns the first line of the answer.
func askRedis(ctx context.Context, port int, command string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(reply), err
}

// supervise starts the server again when it ends, and stops it when ctx is done.
func (s *redisServer) supervise(ctx context.Context) {
	defer close(s.ended)
	pause := minRedisPause
	for {
		started := time.Now()
		select {
		case <-ctx.Done():
			s.child.stop(syscall.SIGTERM, redisStopTimeout)
			return
		case <-s.child.done:
		}
		s.log.Warn("redis-server ended and is started again", "how", s.child.state.String()+s.lastWords())
		if time.Since(started) > maxRedisPause {
			pause = minRedisPause
		}
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, maxRedisPause)
		if err := s.start(); err != nil {
			s.log.Error("redis-server cannot be started again", "error", err)
		} else if s.waitReady(ctx) == nil {
			s.onRestart()
		}
	}
}

func (s *redisServer) url() string { return "redis://127.0.0.1:" + strconv.Itoa(s.port) }
func (s *redisServer) describe() string {
	return fmt.Sprintf("%s (%s at %s, keys: %d, persisted in %s)", s.url(), s.program, s.program.path, s.keys, s.dir)
}

func (s *redisServer) logFile() string { return filepath.Join(s.dir, "redis.log") }

// lastWords returns the last faults in the server's log, which say why it ended, and where the log is.
func (s *redisServer) lastWords() string {
	text, _ := os.ReadFile(s.logFile()) // without it only the place is told
	var words []string
	for line := range strings.Lines(string(text)) {
		_, fault, found := strings.Cut(strings.TrimSpace(line), " # ")
		// At the same level are hints about the machine, and how far it had come.
		if found && !strings.HasPrefix(fault, "WARNING") && fault != "Configuration loaded" && fault != "Server initialized" {
			words = append(words, fault)
		}
	}
	words = words[max(0, len(words)-maxLastWords):]
	return fmt.Sprintf(": %s (see %s)", strings.Join(words, "; "), s.logFile())
}

func (s *redisServer) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child.Pid
}

func (s *redisServer) stop() {
	s.cancel()
	<-s.ended
}

func (s *redisServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.child.Kill()
}
