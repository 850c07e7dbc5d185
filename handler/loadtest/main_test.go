package loadtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// The local host and the staged package, built once for all tests.
var hostBinary, packageDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "loadtest")
	if err == nil {
		hostBinary, packageDir = filepath.Join(dir, "localhost"), filepath.Join(dir, "dist")
		err = stage("../..")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// stage builds the local host and the package from the project at root.
func stage(root string) error {
	return errors.Join(
		command("go", "build", "-o", hostBinary, root+"/handler/cmd/localhost"),
		command("go", "build", "-o", filepath.Join(packageDir, "handler"), root+"/handler"),
		os.CopyFS(packageDir, os.DirFS(root+"/functions")),
		command("cp", root+"/host.json", packageDir),
	)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
