package localhost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// madeByFile is the file, beside the data, that names the server which last used it.
const madeByFile = "server.txt"

// redisProgram is an executable that serves Redis, as it tells of itself: Redis, Valkey or Redict, with the version of
// its own. The version is empty where it does not tell.
type redisProgram struct{ path, name, version string }

func (p redisProgram) String() string { return strings.TrimSpace(p.name + " " + p.version) }

// findRedisServer returns the path of the redis-server or, without one, the valkey-server of the PATH.
func findRedisServer() (string, error) {
	path, err := exec.LookPath("redis-server")
	if err == nil {
		return path, nil
	}
	if path, err := exec.LookPath("valkey-server"); err == nil {
		return path, nil
	}
	return "", err
}

var programVersion = regexp.MustCompile(`^(\w+) server v=([0-9.]+)`)

// readProgram asks an executable what it is.
func readProgram(ctx context.Context, path string) (redisProgram, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return redisProgram{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	p := redisProgram{path: path, name: filepath.Base(path)}
	if m := programVersion.FindSubmatch(out); m != nil {
		p.name, p.version = string(m[1]), string(m[2])
	}
	return p, nil
}

// hasRedisData reports whether a server has kept anything in dir, in one of the forms there are.
func hasRedisData(dir string) bool {
	for _, name := range []string{"appendonlydir", "appendonly.aof", "dump.rdb"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && (info.IsDir() || info.Size() > 0) {
			return true
		}
	}
	return false
}

// madeBy names the server that last used the data in dir.
func madeBy(dir string) string {
	text, err := os.ReadFile(filepath.Join(dir, madeByFile))
	if name := strings.TrimSpace(string(text)); err == nil && name != "" {
		return name
	}
	return "a server whose version is not known"
}

// sign writes that p uses the data in dir.
func (p redisProgram) sign(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, madeByFile), []byte(p.String()+"\n"), 0o600); err != nil {
		return fmt.Errorf("note the version of redis-server: %w", err)
	}
	return nil
}

// mayLoad returns an error when p would not see the data in dir and start empty. Where it sees data that it cannot read,
// it ends by itself.
func (p redisProgram) mayLoad(dir string) error {
	major, err := strconv.Atoi(strings.Split(p.version, ".")[0])
	if err != nil || major >= 7 {
		return nil
	}
	// Since version 7 the append-only file is a folder.
	if _, err := os.Stat(filepath.Join(dir, "appendonlydir")); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look for the data of redis-server: %w", err)
	}
	return fmt.Errorf("%w: it would start empty", p.cannotLoad(dir, madeBy(dir)))
}

// cannotLoad says that p cannot load the data in dir, and what to do.
func (p redisProgram) cannotLoad(dir, before string) error {
	return fmt.Errorf("%s at %s cannot load the data in %s, which was kept by %s; put that server first on the PATH, "+
		"or keep the data where it is and choose another folder with DATA_DIR=, or move %s away to begin without its sessions", p, p.path, dir, before, dir)
}
