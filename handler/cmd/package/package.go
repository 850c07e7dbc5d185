package main

import (
	"archive/zip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"
)

// executable is the name of the entry that the host starts. It must be what host.json says, to the letter: Azure
// Functions Core Tools give the exec bit to the entry of exactly that name, and nothing mends a missing one on an
// Elastic Premium plan.
const executable = "handler"

// localSettings holds what a developer's machine uses, secrets perhaps. It never goes into a package.
const localSettings = "local.settings.json"

// modified is the time of every entry: the earliest that a zip can say.
var modified = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// writePackage zips the staged app in dir into the file out, and returns the SHA-256 of the zip in hex and its
// size in bytes. It refuses what the host could not run. out is complete or untouched.
func writePackage(out, dir string) (sum string, size int64, err error) {
	names, err := list(dir)
	if err != nil {
		return "", 0, err
	}
	if err := check(dir, names); err != nil {
		return "", 0, err
	}
	if filepath.Clean(filepath.Dir(out)) == filepath.Clean(dir) {
		return "", 0, fmt.Errorf("create package: %s is in the folder itself: the next package would hold this one", out)
	}
	f, err := os.CreateTemp(filepath.Dir(out), filepath.Base(out)+".*")
	if err != nil {
		return "", 0, fmt.Errorf("create package: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // closed already, or worth nothing
			_ = os.Remove(f.Name())
		}
	}()
	hash := sha256.New()
	z := zip.NewWriter(io.MultiWriter(f, hash))
	for _, name := range names {
		if err := add(z, dir, name); err != nil {
			return "", 0, fmt.Errorf("add %s: %w", name, err)
		}
	}
	if err := z.Close(); err != nil {
		return "", 0, fmt.Errorf("write package: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return "", 0, fmt.Errorf("write package: %w", err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return "", 0, fmt.Errorf("write package: %w", err)
	}
	if err := os.Rename(f.Name(), out); err != nil {
		return "", 0, fmt.Errorf("write package: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil)), info.Size(), nil
}

// list returns the files below dir as slash-separated names, in order.
func list(dir string) ([]string, error) {
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir(), name == localSettings:
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is not a plain file", name)
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the staged app: %w", err)
	}
	return names, nil // WalkDir goes in lexical order
}

// check refuses a staged app that the host would not run: it would stay up and let every request hang.
func check(dir string, names []string) error {
	data, err := os.ReadFile(filepath.Join(dir, "host.json"))
	if err != nil {
		return fmt.Errorf("read the staged app: %w", err)
	}
	var host struct {
		CustomHandler struct {
			Description struct {
				DefaultExecutablePath string `json:"defaultExecutablePath"`
			} `json:"description"`
		} `json:"customHandler"`
	}
	if err := json.Unmarshal(data, &host); err != nil {
		return fmt.Errorf("parse host.json: %w", err)
	}
	if got := host.CustomHandler.Description.DefaultExecutablePath; got != executable {
		return fmt.Errorf("host.json: defaultExecutablePath is %q, it must be exactly %q", got, executable)
	}
	f, err := elf.Open(filepath.Join(dir, executable))
	if err != nil {
		return fmt.Errorf("%s is not a Linux program: %w", executable, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%s is built for %s, the plan runs x86-64: build it with GOOS=linux GOARCH=amd64", executable, f.Machine)
	}
	for _, name := range names {
		if ok, _ := path.Match("*/function.json", name); ok {
			return nil
		}
	}
	return errors.New("there is no function: the host finds <Name>/function.json in direct sub-folders only")
}

// add writes one file as an entry that does not depend on the disk it came from.
func add(z *zip.Writer, dir, name string) error {
	header := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: modified}
	header.SetMode(0o644)
	if name == executable {
		header.SetMode(0o755)
	}
	w, err := z.CreateHeader(header)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
