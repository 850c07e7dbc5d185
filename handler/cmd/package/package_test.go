package main

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// program builds a small program for the platform and returns its bytes.
func program(t *testing.T, goos, goarch string) []byte {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "go.mod", "module small\n\ngo 1.26\n")
	write(t, dir, "main.go", "package main\n\nfunc main() {}\n")
	build := exec.Command("go", "build", "-o", "small", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build for %s/%s: %v\n%s", goos, goarch, err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "small"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var (
	linuxOnce    sync.Once
	linuxProgram []byte
)

// linux returns a program that the plan runs.
func linux(t *testing.T) []byte {
	t.Helper()
	linuxOnce.Do(func() { linuxProgram = program(t, "linux", "amd64") })
	return linuxProgram
}

const hostJSON = `{"version":"2.0","customHandler":{"description":{"defaultExecutablePath":"handler"}}}`

// stage returns a folder with a function app that the host would run.
func stage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "handler", string(linux(t)))
	write(t, dir, "host.json", hostJSON)
	write(t, dir, "Live/function.json", `{"bindings":[]}`)
	write(t, dir, "Heartbeat/function.json", `{"bindings":[]}`)
	return dir
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPackageHoldsTheAppAsTheHostWantsIt(t *testing.T) {
	t.Parallel()
	dir := stage(t)
	write(t, dir, "local.settings.json", `{"Values":{"SECRET":"x"}}`)
	out := filepath.Join(t.TempDir(), "app.zip")
	sum, size, err := writePackage(out, dir)
	if err != nil {
		t.Fatal(err)
	}

	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); sum != hex.EncodeToString(want[:]) || size != int64(len(data)) {
		t.Errorf("said %s, %d bytes; the file has %x, %d bytes", sum, size, want, len(data))
	}
	z, err := zip.OpenReader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var names []string
	for _, f := range z.File {
		names = append(names, f.Name)
		want := fs.FileMode(0o644)
		if f.Name == "handler" {
			want = 0o755
		}
		if f.Mode() != want {
			t.Errorf("%s has mode %v, want %v", f.Name, f.Mode(), want)
		}
		if !f.Modified.Equal(modified) {
			t.Errorf("%s has time %v, want %v", f.Name, f.Modified, modified)
		}
	}
	if want := []string{"Heartbeat/function.json", "Live/function.json", "handler", "host.json"}; !slices.Equal(names, want) {
		t.Errorf("entries are %q, want %q", names, want)
	}
	content, err := fs.ReadFile(z, "handler")
	if err != nil || string(content) != string(linux(t)) {
		t.Errorf("the handler in the package is not that of the folder (%v)", err)
	}
}

func TestSameFilesGiveSameBytes(t *testing.T) {
	t.Parallel()
	first := stage(t)
	second := stage(t)
	// Other times, other modes, another order of creation: the bytes are the same.
	err := filepath.WalkDir(second, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(name, time.Now(), time.Now().Add(-1000*time.Hour))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(second, "handler"), 0o700); err != nil {
		t.Fatal(err)
	}
	one, _, err := writePackage(filepath.Join(t.TempDir(), "a.zip"), first)
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := writePackage(filepath.Join(t.TempDir(), "b.zip"), second)
	if err != nil {
		t.Fatal(err)
	}
	if one != two {
		t.Errorf("two packages of the same files differ: %s and %s", one, two)
	}
	write(t, second, "Live/function.json", `{"bindings":[ ]}`)
	three, _, err := writePackage(filepath.Join(t.TempDir(), "c.zip"), second)
	if err != nil {
		t.Fatal(err)
	}
	if three == one {
		t.Error("a changed file did not change the hash")
	}
}

func TestPackageRefusesWhatTheHostCouldNotRun(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  string
	}{
		"no handler": {func(t *testing.T, dir string) { remove(t, dir, "handler") }, "handler is not a Linux program"},
		"a script":   {func(t *testing.T, dir string) { write(t, dir, "handler", "#!/bin/sh\n") }, "handler is not a Linux program"},
		"another processor": {
			func(t *testing.T, dir string) { write(t, dir, "handler", string(program(t, "linux", "arm64"))) },
			"GOOS=linux GOARCH=amd64",
		},
		"no host.json":       {func(t *testing.T, dir string) { remove(t, dir, "host.json") }, "host.json"},
		"a broken host.json": {func(t *testing.T, dir string) { write(t, dir, "host.json", "{") }, "parse host.json"},
		"another name": {func(t *testing.T, dir string) {
			write(t, dir, "host.json", strings.Replace(hostJSON, `"handler"`, `"./handler"`, 1))
		}, `defaultExecutablePath is "./handler", it must be exactly "handler"`},
		"no functions": {func(t *testing.T, dir string) {
			remove(t, dir, "Live")
			remove(t, dir, "Heartbeat")
		}, "there is no function"},
		"functions too deep": {func(t *testing.T, dir string) {
			remove(t, dir, "Live")
			remove(t, dir, "Heartbeat")
			write(t, dir, "functions/Live/function.json", "{}")
		}, "direct sub-folders"},
		"a link": {func(t *testing.T, dir string) {
			if err := os.Symlink("host.json", filepath.Join(dir, "link")); err != nil {
				t.Fatal(err)
			}
		}, "link is not a plain file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := stage(t)
			test.spoil(t, dir)
			folder := t.TempDir()
			out := filepath.Join(folder, "app.zip")
			write(t, folder, "app.zip", "the one before")
			_, _, err := writePackage(out, dir)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
			left, err := os.ReadDir(folder)
			if err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(out); err != nil || string(data) != "the one before" || len(left) != 1 {
				t.Errorf("the package of before is touched: %q, %v, %d files", data, err, len(left))
			}
		})
	}
}

func TestPackageSaysWhyItCannotWrite(t *testing.T) {
	t.Parallel()
	dir := stage(t)
	for out, want := range map[string]string{
		filepath.Join(t.TempDir(), "missing", "app.zip"): "create package",
		filepath.Join(dir, "app.zip"):                    "the next package would hold this one",
	} {
		if _, _, err := writePackage(out, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one with %q", err, want)
		}
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}
