package localhost

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// This file finds out, as soon as the handler runs, what would only break later, so that the first output can say it.

const (
	// advicePatience is how long the first output waits for all of it.
	advicePatience = 4500 * time.Millisecond
	// healthSettles is how long the parts of the handler may take to become well after its start.
	healthSettles = 2 * time.Second
	healthPause   = 50 * time.Millisecond
	// maxHealthBytes bounds an answer about health, and storageTimeout a look at the storage account.
	maxHealthBytes = 1 << 20
	storageTimeout = 3 * time.Second
)

// advice returns a line for each thing that is not well, without the value of any setting.
func (h *Host) advice(ctx context.Context) []string {
	storage := make(chan string, 1)
	go func() { storage <- storageAdvice(ctx, h.app.settings) }() // ends with ctx at the latest
	lines := h.healthAdvice(ctx)
	if line := <-storage; line != "" {
		lines = append(lines, line)
	}
	if h.app.settings["ServiceBusConnection"] != "" {
		lines = append(lines, "ServiceBusConnection is set, but this host receives from its embedded queues only")
	}
	return lines
}

// healthAdvice asks the handler how it is, if a function GET .../health answers that, until all is well or the time to
// settle is over, and returns what each part says that is not well.
func (h *Host) healthAdvice(ctx context.Context) []string {
	var path string
	for _, f := range h.app.functions {
		if f.active() && f.trigger.Type == "httpTrigger" && f.trigger.allows(http.MethodGet) && strings.HasSuffix(f.route.template, "/health") {
			path = "/" + f.route.template
		}
	}
	if path == "" {
		return nil
	}
	for settled := time.Now().Add(healthSettles); ; {
		lines, err := askHealth(ctx, h.process.url()+path)
		switch {
		case err != nil:
			return []string{"GET " + h.url() + path + " is not answered: " + err.Error()}
		case len(lines) == 0, time.Now().After(settled), !wait(ctx, healthPause):
			return lines
		}
	}
}

// askHealth returns a line for each part that is not ok.
func askHealth(ctx context.Context, url string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var health struct {
		Parts map[string]struct{ Status, Detail string }
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxHealthBytes)).Decode(&health); err != nil {
		return nil, fmt.Errorf("status %d, and the body says nothing of health", resp.StatusCode)
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(health.Parts)) {
		if part := health.Parts[name]; part.Status != "ok" {
			lines = append(lines, fmt.Sprintf("%s is %s: %s", name, part.Status, part.Detail))
		}
	}
	return lines, nil
}

// storageAdvice looks whether the storage account of the Functions host can be reached. This host needs none, but the
// real one does not listen without it. Nothing is said of the emulator, which is the default, and of no account.
func storageAdvice(ctx context.Context, settings map[string]string) string {
	const consequence = ": this host needs no storage account, but the Functions host does not start to listen without it"
	name, address, err := storageAddress(settings)
	if err != nil {
		return name + " " + err.Error() + consequence
	}
	if address == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Sprintf("%s names %s, which cannot be reached%s", name, address, consequence)
	}
	_ = conn.Close() // nothing was sent
	return ""
}

// storageAddress returns which setting names the storage account, and the host and port of its blobs, "" for none that
// can be looked at. The error of a value does not show it: it may hold a key.
func storageAddress(settings map[string]string) (name, address string, err error) {
	const setting = "AzureWebJobsStorage"
	if uri := settings[setting+"__blobServiceUri"]; uri != "" {
		address, err = hostAndPort(uri)
		return setting + "__blobServiceUri", address, err
	}
	if account := settings[setting+"__accountName"]; account != "" {
		address, err = hostAndPort("https://" + account + ".blob.core.windows.net")
		return setting + "__accountName", address, err
	}
	value := strings.TrimSpace(settings[setting])
	if strings.HasPrefix(value, "@Microsoft.KeyVault(") {
		return setting, "", fmt.Errorf("is a reference to Key Vault, which only the platform resolves")
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(value, ";") {
		if key, text, ok := strings.Cut(part, "="); ok {
			parts[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(text)
		}
	}
	switch account, suffix := parts["accountname"], parts["endpointsuffix"]; {
	case value == "", strings.EqualFold(parts["usedevelopmentstorage"], "true"):
		return setting, "", nil
	case parts["blobendpoint"] != "":
		address, err = hostAndPort(parts["blobendpoint"])
	case account != "":
		scheme := parts["defaultendpointsprotocol"]
		if scheme == "" {
			scheme = "https"
		}
		if suffix == "" {
			suffix = "core.windows.net"
		}
		address, err = hostAndPort(scheme + "://" + account + ".blob." + suffix)
	default:
		err = fmt.Errorf("is no connection string of a storage account, such as UseDevelopmentStorage=true")
	}
	return setting, address, err
}

// hostAndPort returns the host and port of a URL of a web service.
func hostAndPort(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("has no URL of a storage account, such as https://ACCOUNT.blob.core.windows.net")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
