package localhost

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ownServer returns the redis-server of this machine, and what it is.
func ownServer(t *testing.T) redisProgram {
	t.Helper()
	path, err := findRedisServer()
	if err != nil {
		t.Fatal(err)
	}
	p, err := readProgram(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fakeServer puts a script onto the PATH that says that it is a server of another version, and runs as the real one.
func fakeServer(t *testing.T, name, says string) {
	t.Helper()
	own, dir := ownServer(t), t.TempDir()
	script := "#!/bin/sh\nif [ \"$1\" = --version ]; then echo '" + says + "'; else exec '" + own.path + "' \"$@\"; fi\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/bin:/nowhere")
	if name != "redis-server" {
		if _, err := exec.LookPath("redis-server"); err == nil {
			t.Setenv("PATH", dir)
		}
	}
}

// keep runs a host that leaves a key in its data folder, and returns the folder.
func keep(t *testing.T) string {
	t.Helper()
	app := handlerApp(RedisServer, nil)
	app.options.DataDir = filepath.Join(t.TempDir(), "my data", `it's #1 of %41?&"x"`)
	r := start(t, app)
	if err := redisClient(t, r.RedisURL).Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	return app.options.DataDir
}

func TestRedisPrograms(t *testing.T) {
	for says, want := range map[string]string{
		"Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0": "Redis 7.0.15",
		"Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1":               "Valkey 8.1.1",
		"Redict server v=7.3.6 sha=00000000:0":                                                     "Redict 7.3.6",
		"something else":                                                                           "redis-server",
	} {
		fakeServer(t, "redis-server", says)
		if got := ownServer(t).String(); got != want {
			t.Errorf("%q: %q, want %q", says, got, want)
		}
	}
}

// TestValkeyIsFoundByItsOwnName: a machine may have no redis-server at all. The banner shows its own version.
func TestValkeyIsFoundByItsOwnName(t *testing.T) {
	fakeServer(t, "valkey-server", "Valkey server v=8.1.1 sha=00000000:0")
	r := start(t, handlerApp(RedisAuto, nil))
	if r.RedisPID == 0 || !strings.Contains(r.stdout.String(), "Valkey 8.1.1 at ") {
		t.Errorf("output:\n%s", r.stdout)
	}
}

// TestDataOfTheSameServer is loaded, from a folder of any name, and the banner says how much it is.
func TestDataOfTheSameServer(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisServer, nil)
	app.options.DataDir = keep(t)
	r := start(t, app)
	if got := redisClient(t, r.RedisURL).Get(t.Context(), "key").Val(); got != "value" {
		t.Errorf("the key is %q", got)
	}
	if _, err := os.Stat(filepath.Join(app.options.DataDir, "queues.db")); err != nil {
		t.Error(err)
	}
	want := ownServer(t)
	if !strings.Contains(r.stdout.String(), want.String()+" at "+want.path+", keys: 1, persisted in "+app.options.DataDir) {
		t.Errorf("output:\n%s", r.stdout)
	}
	if text, err := os.ReadFile(filepath.Join(app.options.DataDir, "redis", madeByFile)); err != nil || string(text) != want.String()+"\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// wantRefused starts a host on the data and wants it to say what happened and what to do.
func wantRefused(t *testing.T, app testApp, phrases ...string) {
	t.Helper()
	err := launch(t, app).result(t)
	if err == nil {
		t.Fatal("the host ran")
	}
	for _, phrase := range append(phrases, filepath.Join(app.options.DataDir, "redis"), "DATA_DIR=", "first on the PATH") {
		if !strings.Contains(err.Error(), phrase) {
			t.Errorf("%v\ndoes not say %q", err, phrase)
		}
	}
}

// TestDataThatAnOlderServerDoesNotSee: it would start empty, so it is not started at all.
func TestDataThatAnOlderServerDoesNotSee(t *testing.T) {
	app := handlerApp(RedisServer, nil)
	app.options.DataDir = keep(t)
	own := ownServer(t).String()
	fakeServer(t, "redis-server", "Redis server v=6.2.14 sha=00000000:0")
	wantRefused(t, app, "Redis 6.2.14 at ", "kept by "+own, "start empty")
}

// TestDataOfANewerServer does not load, and the server's own reason is told. The data stays as it was.
func TestDataOfANewerServer(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisServer, nil)
	app.options.DataDir = keep(t)
	dir := filepath.Join(app.options.DataDir, "redis")
	base, err := filepath.Glob(strings.ReplaceAll(filepath.Dir(app.options.DataDir), "[", "\\[") + "/*/redis/appendonlydir/*.base.rdb")
	if err != nil || len(base) != 1 {
		t.Fatalf("%q, %v", base, err)
	}
	data, err := os.ReadFile(base[0])
	if err != nil || !bytes.HasPrefix(data, []byte("REDIS00")) {
		t.Fatalf("%.20q, %v", data, err)
	}
	copy(data, "REDIS0099")
	if err := os.WriteFile(base[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	newer := redisProgram{name: "Redis", version: "99.0.0"}
	if err := newer.sign(dir); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, app, ownServer(t).String(), "kept by Redis 99.0.0", "RDB format version 99")
	if after, err := os.ReadFile(base[0]); err != nil || !bytes.Equal(after, data) || madeBy(dir) != "Redis 99.0.0" {
		t.Errorf("the data was changed, or is said to be of %s; %v", madeBy(dir), err)
	}
}

// TestDataThatNoServerSees: whoever finds nothing where another server kept something says so.
func TestDataThatNoServerSees(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisServer, nil)
	app.options.DataDir = t.TempDir()
	dir := filepath.Join(app.options.DataDir, "redis")
	write(t, filepath.Join(dir, "dump.rdb"), "REDIS0010") // of a server that kept no append-only file
	write(t, filepath.Join(dir, madeByFile), "Redict 7.3.6\n")
	r := start(t, app)
	if log := r.log.String(); !strings.Contains(log, "Redis is empty") || !strings.Contains(log, `kept_by="Redict 7.3.6"`) || !strings.Contains(r.stdout.String(), ", keys: 0, ") {
		t.Errorf("log:\n%s\noutput:\n%s", log, r.stdout)
	}
}

// TestEmbeddedRedisLeavesData: without a redis-server sessions are not loaded, and the banner says so.
func TestEmbeddedRedisLeavesData(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisMini, nil)
	app.options.DataDir = keep(t)
	r := start(t, app)
	want := "the sessions that " + ownServer(t).String() + " kept in " + filepath.Join(app.options.DataDir, "redis") + " are NOT loaded"
	if !strings.Contains(r.stdout.String(), want) || !strings.Contains(r.log.String(), "starts empty") {
		t.Errorf("output:\n%s\nlog:\n%s", r.stdout, r.log)
	}
	if again := start(t, handlerApp(RedisMini, nil)); strings.Contains(again.stdout.String(), "NOT loaded") {
		t.Errorf("an empty folder has nothing to load:\n%s", again.stdout)
	}
}
