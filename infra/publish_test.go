package infra_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	healthy   = `{"status":"ok","version":"1.2.3","parts":{"redis":{"status":"ok"}}}`
	degraded  = `{"status":"degraded","version":"1.2.3","parts":{"queue":{"status":"degraded","detail":"no queue"},"redis":{"status":"ok"}}}`
	down      = `{"status":"down","version":"1.2.3","parts":{"redis":{"status":"down","detail":"no Redis"},"queue":{"status":"ok"}}}`
	appKey    = "TOPSECRETKEY=="
	oldURL    = "https://stpresence.blob.core.windows.net/packages/old.zip"
	olderURL  = "https://stpresence.blob.core.windows.net/packages/older.zip"
	signedURL = "https://st.blob.core.windows.net/function-releases/old.zip?sig=" + signature
)

// answer is one answer of the app.
type answer struct {
	code int
	body string
}

// bench is a folder with the stand-ins, a package, and an app that answers over TLS.
type bench struct {
	t     *testing.T
	dir   string
	zip   string
	hash  string
	stage string
	env   map[string]string
	cloud *cloud

	mu     sync.Mutex
	live   []int    // the last one is repeated
	health []answer // the last one is repeated
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), live: []int{200}, health: []answer{{200, healthy}}}
	server := httptest.NewTLSServer(http.HandlerFunc(b.serve))
	t.Cleanup(server.Close)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"az", "func", "azd", "make"} {
		b.write(filepath.Join("bin", tool), fmt.Sprintf("#!/bin/sh\nSTANDIN_TOOL=%s exec '%s' \"$@\"\n", tool, self), 0o755)
	}
	b.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})), 0o600)
	b.zip = b.write("app.zip", "the package", 0o600)
	sum := sha256.Sum256([]byte("the package"))
	b.hash = hex.EncodeToString(sum[:])
	b.stage = filepath.Dir(b.write("dist/host.json", "{}", 0o600))
	b.env = map[string]string{
		"PATH": filepath.Join(b.dir, "bin") + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME": b.dir,
		"STANDIN_DIR": b.dir, "CURL_CA_BUNDLE": filepath.Join(b.dir, "ca.pem"), "TMPDIR": filepath.Join(b.dir, "tmp"),
		"PUBLISH_TRIES": "6", "PUBLISH_PAUSE": "0",
		// Under the race detector a program waits a second before it ends, and a stand-in is a program.
		"GORACE": "atexit_sleep_ms=0",
	}
	if err := os.Mkdir(filepath.Join(b.dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(server.URL, "https://")
	b.cloud = &cloud{
		LoggedIn: true, Groups: []string{"presence"}, Blobs: map[string]string{}, Failures: map[string]int{},
		Apps: map[string]*cloudApp{
			"presence-api-abc123": {Group: "presence", Host: host, Role: "api", Key: appKey, Settings: map[string]string{
				"FUNCTIONS_WORKER_RUNTIME": "custom", "AzureWebJobsStorage__accountName": "stpresence",
				"WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID": "/subscriptions/s/id", "WEBSITE_RUN_FROM_PACKAGE": oldURL,
			}},
			"presence-keys": {Group: "keys", Host: host, Role: "api", Key: appKey, Settings: map[string]string{
				"FUNCTIONS_WORKER_RUNTIME": "custom", "AzureWebJobsStorage": "AccountKey=TOPSECRETSTORAGE", "WEBSITE_CONTENTSHARE": "presence-keys",
				"WEBSITE_RUN_FROM_PACKAGE": signedURL,
			}},
			"somebody-else": {Group: "presence", Host: host, Key: appKey, Settings: map[string]string{"FUNCTIONS_WORKER_RUNTIME": "node"}},
		},
	}
	return b
}

func (b *bench) write(name, content string, mode os.FileMode) string {
	b.t.Helper()
	file := filepath.Join(b.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), mode)); err != nil {
		b.t.Fatal(err)
	}
	return file
}

// serve plays the app.
func (b *bench) serve(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.URL.Path == "/api/live":
		w.WriteHeader(next(&b.live))
	case r.URL.Path == "/api/health" && r.Header.Get("X-Functions-Key") == appKey:
		a := next(&b.health)
		w.WriteHeader(a.code)
		fmt.Fprint(w, a.body)
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func next[T any](list *[]T) T {
	one := (*list)[0]
	if len(*list) > 1 {
		*list = (*list)[1:]
	}
	return one
}

// run runs a script and returns what it printed and its exit code. It checks that no secret was printed or given as
// an argument, and that no temporary file stayed.
func (b *bench) run(script string, args ...string) (output string, code int) {
	b.t.Helper()
	state, err := json.Marshal(b.cloud)
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("cloud.json", string(state), 0o600)
	cmd := exec.Command("sh", append([]string{filepath.Join("publish", script)}, args...)...)
	for name, value := range b.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatalf("run %s: %v", script, err)
	}
	if state, err = os.ReadFile(filepath.Join(b.dir, "cloud.json")); err != nil {
		b.t.Fatal(err)
	}
	*b.cloud = cloud{}
	if err := json.Unmarshal(state, b.cloud); err != nil {
		b.t.Fatal(err)
	}
	for _, c := range b.cloud.Calls {
		if seen := fmt.Sprint(c.Command, c.Options); strings.Contains(seen, "TOPSECRET") {
			b.t.Errorf("a secret is an argument: %s", seen)
		}
	}
	if strings.Contains(string(out), "TOPSECRET") {
		b.t.Errorf("a secret was printed:\n%s", out)
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "tmp", "*")); len(left) > 0 {
		b.t.Errorf("temporary files stayed: %q", left)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (b *bench) succeed(script string, args ...string) string {
	b.t.Helper()
	out, code := b.run(script, args...)
	if code != 0 {
		b.t.Fatalf("%s ended with %d:\n%s", script, code, out)
	}
	return out
}

// fail runs a script that must fail with a message that holds all of want.
func (b *bench) fail(script string, args []string, want ...string) {
	b.t.Helper()
	out, code := b.run(script, args...)
	if code == 0 {
		b.t.Errorf("%s succeeded:\n%s", script, out)
	}
	for _, w := range append(want, "error: ") {
		if !strings.Contains(out, w) {
			b.t.Errorf("%s does not say %q:\n%s", script, w, out)
		}
	}
}

func (b *bench) publish(app string) []string { return []string{app, b.zip, b.stage} }

// commands returns the calls that change something, or ask for what is secret.
func (b *bench) commands() string {
	var list []string
	for _, c := range b.cloud.Calls {
		switch c.Command {
		case "account show", "functionapp list", "functionapp config appsettings list", "storage account show", "storage blob exists":
		default:
			list = append(list, c.Command)
		}
	}
	return strings.Join(list, ", ")
}

func (b *bench) wantSettings(app string, want map[string]string) {
	b.t.Helper()
	for name, value := range want {
		if got := b.cloud.Apps[app].Settings[name]; got != value {
			b.t.Errorf("%s of %s is %q, want %q", name, app, got, value)
		}
	}
}

func wantIn(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("the output does not say %q:\n%s", w, out)
		}
	}
}

func TestPublishByUpload(t *testing.T) {
	t.Parallel()
	const app = "presence-api-abc123"
	b := newBench(t)
	out := b.succeed("publish.sh", b.publish(app)...)

	url := "https://stpresence.blob.core.windows.net/packages/" + b.hash + ".zip"
	b.wantSettings(app, map[string]string{"WEBSITE_RUN_FROM_PACKAGE": url, "PREVIOUS_PACKAGE_URL": oldURL})
	if got := b.cloud.Blobs[b.hash+".zip"]; got != b.hash {
		t.Errorf("the package was uploaded as %q", got)
	}
	if got, want := b.commands(), "storage blob upload, functionapp config appsettings set, functionapp restart, rest, functionapp keys list"; got != want {
		t.Errorf("calls are\n%s, want\n%s", got, want)
	}
	for _, c := range b.cloud.Calls {
		switch c.Command {
		case "storage blob upload", "storage blob exists":
			if c.Options["auth-mode"] != "login" || c.Options["account-name"] != "stpresence" || c.Options["container-name"] != "packages" {
				t.Errorf("%s with %v", c.Command, c.Options)
			}
		case "rest":
			want := "/subscriptions/s/resourceGroups/presence/providers/Microsoft.Web/sites/" + app + "/syncfunctiontriggers?api-version=2024-11-01"
			if c.Options["method"] != "post" || c.Options["url"] != want {
				t.Errorf("rest with %v", c.Options)
			}
		}
	}
	wantIn(t, out, "Test Subscription", "storage: identity", "runs: "+url, "live: 200", "health: ok", `"version":"1.2.3"`)
}

func TestPublishTheSameAgainKeepsTheWayBack(t *testing.T) {
	t.Parallel()
	const app = "presence-api-abc123"
	b := newBench(t)
	b.succeed("publish.sh", b.publish(app)...)
	b.cloud.Calls = nil
	out := b.succeed("publish.sh", b.publish(app)...)
	wantIn(t, out, "is there already", "runs this package already", "health: ok")
	if got, want := b.commands(), "functionapp restart, rest, functionapp keys list"; got != want {
		t.Errorf("calls are\n%s, want\n%s", got, want)
	}
	b.wantSettings(app, map[string]string{"PREVIOUS_PACKAGE_URL": oldURL})
}

func TestFirstPublishHasNoWayBack(t *testing.T) {
	t.Parallel()
	const app = "presence-api-abc123"
	b := newBench(t)
	delete(b.cloud.Apps[app].Settings, "WEBSITE_RUN_FROM_PACKAGE")
	b.succeed("publish.sh", b.publish(app)...)
	b.wantSettings(app, map[string]string{"PREVIOUS_PACKAGE_URL": ""})
	b.fail("rollback.sh", []string{app}, "has no previous package")
}

func TestPublishWithKeys(t *testing.T) {
	t.Parallel()
	const app = "presence-keys"
	b := newBench(t)
	out := b.succeed("publish.sh", b.publish(app)...)
	b.wantSettings(app, map[string]string{
		"WEBSITE_RUN_FROM_PACKAGE": "https://st.blob.core.windows.net/function-releases/1.zip?sv=1&sig=" + signature, "PREVIOUS_PACKAGE_URL": signedURL,
	})
	if got, want := b.commands(), "azure functionapp publish presence-keys, functionapp config appsettings set, functionapp restart, rest, functionapp keys list"; got != want {
		t.Errorf("calls are\n%s, want\n%s", got, want)
	}
	for _, c := range b.cloud.Calls {
		if c.Tool == "func" && (c.Dir != b.stage || c.Env["FUNCTIONS_WORKER_RUNTIME"] != "custom") {
			t.Errorf("func ran in %s with %v", c.Dir, c.Env)
		}
	}
	wantIn(t, out, "storage: keys", "runs: https://st.blob.core.windows.net/function-releases/1.zip\n", "health: ok")
}

func TestRollbackGoesBackAndForth(t *testing.T) {
	t.Parallel()
	for _, app := range []string{"presence-api-abc123", "presence-keys"} {
		t.Run(app, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.succeed("publish.sh", b.publish(app)...)
			published := maps.Clone(b.cloud.Apps[app].Settings)
			b.cloud.Calls = nil

			out := b.succeed("rollback.sh", app)
			b.wantSettings(app, map[string]string{
				"WEBSITE_RUN_FROM_PACKAGE": published["PREVIOUS_PACKAGE_URL"], "PREVIOUS_PACKAGE_URL": published["WEBSITE_RUN_FROM_PACKAGE"],
			})
			if got, want := b.commands(), "functionapp config appsettings set, functionapp restart, rest, functionapp keys list"; got != want {
				t.Errorf("calls are\n%s, want\n%s", got, want)
			}
			wantIn(t, out, "ran: ", "runs: ", "health: ok")

			b.succeed("rollback.sh", app)
			b.wantSettings(app, published)
		})
	}
}

func TestPublishWaitsUntilTheAppAnswers(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.env["PUBLISH_TRIES"] = "20"
	// The first 200 is of the old process.
	b.live = []int{200, 503, 502, 200, 200, 503, 200}
	b.health = []answer{{503, down}, {200, degraded}, {503, down}, {200, healthy}}
	b.cloud.Failures["rest"] = 3
	out := b.succeed("publish.sh", b.publish("presence-api-abc123")...)
	wantIn(t, out, "live: 200 (9 tries)", "triggers: synchronised", "health: ok (4 tries)")
}

func TestPublishSaysWhatIsDegraded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.health = []answer{{200, degraded}}
	out := b.succeed("publish.sh", b.publish("presence-api-abc123")...)
	wantIn(t, out, "health: degraded", `"detail":"no queue"`, "not all of it is well")
}

func TestPublishFailsWithAReason(t *testing.T) {
	t.Parallel()
	const app = "presence-api-abc123"
	for name, test := range map[string]struct {
		app   string
		spoil func(b *bench)
		want  []string
	}{
		"not logged in":    {app, func(b *bench) { b.cloud.LoggedIn = false }, []string{"not logged in", "az login"}},
		"no such app":      {"wrong", nil, []string{"no function app 'wrong'", "Test Subscription"}},
		"no app":           {"", nil, []string{"which app?", "APP=name"}},
		"a strange name":   {"x'y", nil, []string{"not the name of an app"}},
		"not one of ours":  {"somebody-else", nil, []string{"not an app of these templates", "'node'"}},
		"no storage":       {app, func(b *bench) { delete(b.cloud.Apps[app].Settings, "AzureWebJobsStorage__accountName") }, []string{"provision.sh"}},
		"no identity":      {app, func(b *bench) { delete(b.cloud.Apps[app].Settings, "WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID") }, []string{"provision.sh"}},
		"no package":       {app, func(b *bench) { b.zip = filepath.Join(b.dir, "none.zip") }, []string{"make package"}},
		"nothing staged":   {app, func(b *bench) { b.stage = b.dir }, []string{"make package"}},
		"upload denied":    {app, func(b *bench) { b.cloud.Failures["storage blob upload"] = -1 }, []string{"Storage Blob Data Contributor", "publisherPrincipalId"}},
		"look denied":      {app, func(b *bench) { b.cloud.Failures["storage blob exists"] = -1 }, []string{"Storage Blob Data Contributor"}},
		"settings denied":  {app, func(b *bench) { b.cloud.Failures["functionapp config appsettings set"] = -1 }, []string{"Website Contributor"}},
		"reading denied":   {app, func(b *bench) { b.cloud.Failures["functionapp config appsettings list"] = -1 }, []string{"Website Contributor"}},
		"restart denied":   {app, func(b *bench) { b.cloud.Failures["functionapp restart"] = -1 }, []string{"could not be restarted"}},
		"no trigger sync":  {app, func(b *bench) { b.cloud.Failures["rest"] = -1 }, []string{"could not be synchronised"}},
		"key denied":       {app, func(b *bench) { b.cloud.Failures["functionapp keys list"] = -1 }, []string{"function key"}},
		"no key":           {app, func(b *bench) { b.cloud.Apps[app].Key = "" }, []string{"no function key named default"}},
		"wrong key":        {app, func(b *bench) { b.cloud.Apps[app].Key = "other" }, []string{"answered 401"}},
		"never live":       {app, func(b *bench) { b.live = []int{503} }, []string{"/api/live answered 503", "make rollback APP=" + app}},
		"package not read": {app, func(b *bench) { b.live = []int{404} }, []string{"answered 404", "could not read the package"}},
		"not reachable":    {app, func(b *bench) { b.cloud.Apps[app].Host = "127.0.0.1:1" }, []string{"answered 000", "reachable"}},
		"never healthy":    {app, func(b *bench) { b.health = []answer{{503, down}} }, []string{"answered 503, status down", "no Redis", "make rollback APP=" + app}},
		"health is no JSON": {
			app, func(b *bench) { b.health = []answer{{200, "<html>"}} },
			[]string{"status unknown", "<html>"},
		},
		"degraded with an error code": {app, func(b *bench) { b.health = []answer{{500, degraded}} }, []string{"answered 500, status degraded"}},
		"ok with an error code":       {app, func(b *bench) { b.health = []answer{{500, healthy}} }, []string{"answered 500"}},
		"func fails":                  {"presence-keys", func(b *bench) { b.cloud.Failures["azure functionapp publish presence-keys"] = -1 }, []string{"func could not publish"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if test.spoil != nil {
				test.spoil(b)
			}
			b.fail("publish.sh", b.publish(test.app), test.want...)
		})
	}
}

func TestAFailedUploadChangesNothing(t *testing.T) {
	t.Parallel()
	const app = "presence-api-abc123"
	b := newBench(t)
	b.cloud.Failures["storage blob upload"] = -1
	b.fail("publish.sh", b.publish(app))
	b.wantSettings(app, map[string]string{"WEBSITE_RUN_FROM_PACKAGE": oldURL, "PREVIOUS_PACKAGE_URL": ""})
	if got, want := b.commands(), "storage blob upload"; got != want {
		t.Errorf("calls are %s, want %s", got, want)
	}
}

func TestAMissingToolIsNamed(t *testing.T) {
	t.Parallel()
	for tool, app := range map[string]string{"az": "presence-api-abc123", "curl": "presence-api-abc123", "func": "presence-keys"} {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			// A PATH of its own, with everything but the tool.
			for _, name := range []string{"sh", "dirname", "awk", "sed", "tr", "cut", "cat", "mktemp", "rm", "sleep", "curl", "sha256sum", "az", "func"} {
				if name == tool {
					continue
				}
				file := filepath.Join(b.dir, "bin", name)
				if name != "az" && name != "func" {
					var err error
					if file, err = exec.LookPath(name); err != nil {
						t.Fatal(err)
					}
				}
				if err := errors.Join(os.MkdirAll(filepath.Join(b.dir, "path"), 0o755), os.Symlink(file, filepath.Join(b.dir, "path", name))); err != nil {
					t.Fatal(err)
				}
			}
			b.env["PATH"] = filepath.Join(b.dir, "path")
			b.fail("publish.sh", b.publish(app), tool+" is not installed")
		})
	}
}

func TestRollbackFailsWithAReason(t *testing.T) {
	t.Parallel()
	const app = "presence-api-abc123"
	for name, test := range map[string]struct {
		previous string
		want     string
	}{
		"nothing before": {"", "has no previous package"},
		"the same":       {oldURL, "is the one that it runs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.cloud.Apps[app].Settings["PREVIOUS_PACKAGE_URL"] = test.previous
			b.fail("rollback.sh", []string{app}, test.want)
			if got := b.commands(); got != "" {
				t.Errorf("it changed something: %s", got)
			}
		})
	}
}

func TestProvisionPassesThePackagesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.cloud.Apps["presence-api-abc123"].Settings["PREVIOUS_PACKAGE_URL"] = olderURL
	b.cloud.Apps["presence-listener-abc123"] = &cloudApp{Group: "presence", Role: "listener", Settings: map[string]string{"WEBSITE_RUN_FROM_PACKAGE": signedURL}}
	b.succeed("provision.sh", "presence", "small.bicepparam", "--what-if")
	last := b.cloud.Calls[len(b.cloud.Calls)-1]
	if last.Command != "deployment group create" || last.Options["parameters"] != "small.bicepparam" || last.Options["resource-group"] != "presence" {
		t.Fatalf("the last call is %+v", last)
	}
	if _, ok := last.Options["what-if"]; !ok {
		t.Error("--what-if is not passed on")
	}
	want := map[string]string{
		"API_PACKAGE_URL": oldURL, "API_PREVIOUS_PACKAGE_URL": olderURL, "LISTENER_PACKAGE_URL": signedURL, "LISTENER_PREVIOUS_PACKAGE_URL": "none",
	}
	if !maps.Equal(last.Env, want) {
		t.Errorf("the templates see %v, want %v", last.Env, want)
	}
}

func TestFirstProvisionHasNoPackages(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.cloud.Groups = append(b.cloud.Groups, "new")
	// There is no listener yet, and nothing was published to the API app.
	b.cloud.Apps["new-api"] = &cloudApp{Group: "new", Role: "api", Settings: map[string]string{"FUNCTIONS_WORKER_RUNTIME": "custom"}}
	b.succeed("provision.sh", "new", "large.bicepparam")
	last := b.cloud.Calls[len(b.cloud.Calls)-1]
	want := map[string]string{
		"API_PACKAGE_URL": "none", "API_PREVIOUS_PACKAGE_URL": "none", "LISTENER_PACKAGE_URL": "none", "LISTENER_PREVIOUS_PACKAGE_URL": "none",
	}
	if !maps.Equal(last.Env, want) {
		t.Errorf("the templates see %v, want %v", last.Env, want)
	}
}

func TestProvisionFailsWithAReason(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args  []string
		spoil func(b *bench)
		want  string
	}{
		"not logged in": {[]string{"presence", "small.bicepparam"}, func(b *bench) { b.cloud.LoggedIn = false }, "az login"},
		"no group":      {[]string{"", "small.bicepparam"}, nil, "GROUP=name"},
		"no such group": {[]string{"wrong", "small.bicepparam"}, nil, "az group create --name wrong"},
		"no file":       {[]string{"presence", ""}, nil, "PARAMS=infra/small.bicepparam"},
		"two API apps": {[]string{"presence", "small.bicepparam"}, func(b *bench) {
			b.cloud.Apps["second-api"] = &cloudApp{Group: "presence", Role: "api"}
		}, "more than one api app: presence-api-abc123 second-api"},
		// Going on would deploy without the package and so remove the code.
		"settings unread": {[]string{"presence", "small.bicepparam"}, func(b *bench) { b.cloud.Failures["functionapp config appsettings list"] = -1 }, "could not be read"},
		"apps unread":     {[]string{"presence", "small.bicepparam"}, func(b *bench) { b.cloud.Failures["functionapp list"] = -1 }, "could not be listed"},
		"deployment":      {[]string{"presence", "small.bicepparam"}, func(b *bench) { b.cloud.Failures["deployment group create"] = -1 }, "the deployment failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if test.spoil != nil {
				test.spoil(b)
			}
			b.fail("provision.sh", test.args, test.want)
			if name != "deployment" && strings.Contains(b.commands(), "deployment") {
				t.Error("it deployed all the same")
			}
		})
	}
}
