package config

import (
	"os"
	"path/filepath"
)

// The defaults of DATA_DIR and MAX_INSTANCES.
const (
	usualDataDir      = ".data"
	usualMaxInstances = 20
)

// SpareDir is where the embedded event log lives if DataDir is the default and may not be written, as in a package that is
// mounted read-only; "" where DATA_DIR names another folder.
func (c Config) SpareDir() string {
	if c.DataDir != usualDataDir {
		return ""
	}
	return filepath.Join(os.TempDir(), c.App)
}

// LogPerInstance reports whether the event log is embedded and each of several instances has its own: on Azure, where the
// instance has a name of its own (WEBSITE_INSTANCE_ID), unless MAX_INSTANCES is 1, and elsewhere where MAX_INSTANCES
// names another number than the default.
func (c Config) LogPerInstance() bool {
	several := c.Instance != hostname() || c.MaxInstances != usualMaxInstances
	return c.CosmosEndpoint == "" && several && c.MaxInstances > 1
}
