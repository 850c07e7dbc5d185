package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMakeRunTakesAnyPath runs the Makefile with a compiler that makes scripts which tell how they were called.
func TestMakeRunTakesAnyPath(t *testing.T) {
	t.Parallel()
	tools := t.TempDir()
	const compiler = `#!/bin/sh
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\necho "$0|$*|$DATA_DIR|$PORT"\n' >"$2" && chmod +x "$2"
`
	if err := os.WriteFile(filepath.Join(tools, "go"), []byte(compiler), 0o700); err != nil {
		t.Fatal(err)
	}
	environ := append(slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains([]string{"DATA_DIR", "PORT", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}, name) // the test may run below make itself
	}), "PATH="+tools+":"+os.Getenv("PATH"))
	dir := t.TempDir()
	for name, data := range map[string]string{
		"a blank": filepath.Join(dir, "my data"), "relative": "my data", "a quote": `it's "mine"`, "signs": "a;b&c#d*",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dist, bin := filepath.Join(dir, name, "my dist"), filepath.Join(dir, name, "my bin")
			cmd := exec.Command("make", "run", "DATA_DIR="+data, "DIST="+dist, "BIN="+bin, "PORT=7099")
			cmd.Dir = filepath.Join("..", "..", "..")
			cmd.Env = environ
			out, err := cmd.CombinedOutput()
			want := bin + "/localhost|--package " + dist + "|" + data + "|7099"
			if err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%v, output\n%s\nwant\n%s", err, out, want)
			}
			if _, err := os.Stat(filepath.Join(dist, "Health", "function.json")); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("default", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command("make", "run", "DIST="+filepath.Join(dir, "dist"), "BIN="+filepath.Join(dir, "bin"))
		cmd.Dir = filepath.Join("..", "..", "..")
		cmd.Env = environ
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), "|.data|7071") {
			t.Errorf("%v, output\n%s", err, out)
		}
	})
}
