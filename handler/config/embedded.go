package config

import (
	"os"
	"path/filepath"
	"strings"
)

// embeddedLog finds out what follows for an event log that is embedded.
func (c *Config) embeddedLog(lookup func(string) (string, bool)) {
	set := func(name string) bool {
		v, ok := lookup(name)
		return ok && strings.TrimSpace(v) != ""
	}
	if !set("DATA_DIR") {
		c.SpareDir = filepath.Join(os.TempDir(), c.App)
	}
	c.LogPerInstance = c.CosmosEndpoint == "" && c.MaxInstances > 1 && (set("WEBSITE_INSTANCE_ID") || set("MAX_INSTANCES"))
}
