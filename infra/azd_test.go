package infra_test

import (
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// azureYAML is what the schema of azd (schemas/v1.0/azure.yaml.json) takes of what we use; anything else is refused.
type azureYAML struct {
	Name  string `yaml:"name"`
	Infra struct {
		Provider string `yaml:"provider"`
		Path     string `yaml:"path"`
		Module   string `yaml:"module"`
	} `yaml:"infra"`
	Hooks map[string]struct {
		Shell           string `yaml:"shell"`
		Run             string `yaml:"run"`
		Interactive     bool   `yaml:"interactive"`
		ContinueOnError bool   `yaml:"continueOnError"`
	} `yaml:"hooks"`
}

func TestAzureYAMLFitsItsSchema(t *testing.T) {
	t.Parallel()
	var file azureYAML
	if err := yaml.UnmarshalWithOptions([]byte(readText(t, "../azure.yaml")), &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(file.Name) {
		t.Errorf("name is %q", file.Name)
	}
	if file.Infra.Provider != "bicep" {
		t.Errorf("the provider is %q", file.Infra.Provider)
	}
	// azd takes MODULE.bicepparam beside MODULE.bicep.
	for _, end := range []string{".bicep", ".bicepparam"} {
		readText(t, "../"+file.Infra.Path+"/"+file.Infra.Module+end)
	}
	if got := slices.Sorted(maps.Keys(file.Hooks)); !slices.Equal(got, []string{"postprovision", "preprovision"}) {
		t.Errorf("the hooks are %v", got)
	}
	for name, hook := range file.Hooks {
		if hook.Shell != "sh" || hook.ContinueOnError {
			t.Errorf("%s: %+v", name, hook)
		}
		m := regexp.MustCompile(`^sh (infra/publish/[a-z]+\.sh) (before|after)$`).FindStringSubmatch(hook.Run)
		if m == nil {
			t.Fatalf("%s runs %q", name, hook.Run)
		}
		if out, err := exec.Command("sh", "-n", "../"+m[1]).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", m[1], err, out)
		}
	}
}

// azd returns a bench whose scripts see what azd passes to its hooks.
func azd(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	maps.Copy(b.env, map[string]string{
		"AZURE_RESOURCE_GROUP": "presence", "AZURE_SUBSCRIPTION_ID": "subscription-id", "AZURE_LOCATION": "westeurope",
		"apiApp": "presence-api-abc123", "listenerApp": "presence-listener-abc123", "PUBLISH_ATTEMPTS": "3", "PUBLISH_WAIT": "0",
	})
	return b
}

// callsOf returns the calls of a tool.
func (b *bench) callsOf(tool string) []string {
	var list []string
	for _, c := range b.cloud.Calls {
		if c.Tool == tool {
			list = append(list, c.Command)
		}
	}
	return list
}

func TestAzdPassesThePackagesOn(t *testing.T) {
	t.Parallel()
	b := azd(t)
	b.cloud.Apps["presence-api-abc123"].Settings["PREVIOUS_PACKAGE_URL"] = olderURL
	b.succeed("azd.sh", "before")
	want := []string{
		"env set API_PACKAGE_URL " + oldURL, "env set API_PREVIOUS_PACKAGE_URL " + olderURL,
		"env set LISTENER_PACKAGE_URL none", "env set LISTENER_PREVIOUS_PACKAGE_URL none",
	}
	if got := b.callsOf("azd"); !slices.Equal(got, want) {
		t.Errorf("azd is given\n%q, want\n%q", got, want)
	}
}

func TestAzdMakesTheGroup(t *testing.T) {
	t.Parallel()
	b := azd(t)
	b.env["AZURE_RESOURCE_GROUP"] = "new"
	b.succeed("azd.sh", "before")
	if !slices.Contains(b.cloud.Groups, "new") || len(b.callsOf("azd")) != 4 {
		t.Errorf("groups %v, azd %q", b.cloud.Groups, b.callsOf("azd"))
	}
}

func TestAzdPublishesTheListenerFirst(t *testing.T) {
	t.Parallel()
	b := azd(t)
	// A new role does not work yet.
	b.cloud.Failures["publish APP=presence-listener-abc123"] = 2
	out := b.succeed("azd.sh", "after")
	want := []string{
		"publish APP=presence-listener-abc123", "publish APP=presence-listener-abc123", "publish APP=presence-listener-abc123",
		"publish APP=presence-api-abc123",
	}
	if got := b.callsOf("make"); !slices.Equal(got, want) {
		t.Errorf("make is called with %q, want %q", got, want)
	}
	wantIn(t, out, "again in 0 s")
}

func TestAzdFailsWithAReason(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		when  string
		spoil func(b *bench)
		want  string
	}{
		"no hook":            {"never", func(*bench) {}, "usage: azd.sh before|after"},
		"no group":           {"before", func(b *bench) { b.env["AZURE_RESOURCE_GROUP"] = "" }, "azd env set AZURE_RESOURCE_GROUP"},
		"no region":          {"before", func(b *bench) { b.env["AZURE_RESOURCE_GROUP"], b.env["AZURE_LOCATION"] = "new", "" }, "azd env set AZURE_LOCATION"},
		"other subscription": {"before", func(b *bench) { b.env["AZURE_SUBSCRIPTION_ID"] = "other" }, "az account set --subscription other"},
		"not logged in":      {"after", func(b *bench) { b.cloud.LoggedIn = false }, "az login"},
		// Going on would deploy without the package and so remove the code.
		"settings unread": {"before", func(b *bench) { b.cloud.Failures["functionapp config appsettings list"] = -1 }, "could not be read"},
		"signed URL": {"before", func(b *bench) {
			b.cloud.Apps["presence-api-abc123"].Settings["WEBSITE_RUN_FROM_PACKAGE"] = signedURL
		}, "make provision"},
		"no outputs":        {"after", func(b *bench) { b.env["apiApp"] = "" }, "make publish APP=name"},
		"publishing failed": {"after", func(b *bench) { b.cloud.Failures["publish APP=presence-listener-abc123"] = -1 }, "make publish APP=presence-listener-abc123"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := azd(t)
			test.spoil(b)
			b.fail("azd.sh", []string{test.when}, test.want)
			if strings.Contains(strings.Join(b.callsOf("make"), " "), "api") {
				t.Error("it went on to the API app")
			}
		})
	}
}
