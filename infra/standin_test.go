package infra_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The scripts call az and func. In these tests both are this test binary, started again through a small script: it
// records the call and plays the part of Azure that the call reaches. What it keeps is a file, cloud.json.

// TestMain plays the stand-in when a script calls it, and runs the tests otherwise.
func TestMain(m *testing.M) {
	if tool := os.Getenv("STANDIN_TOOL"); tool != "" {
		if err := standIn(os.Getenv("STANDIN_DIR"), tool, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "ERROR:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// cloud is what the stand-ins know of Azure.
type cloud struct {
	LoggedIn bool
	Groups   []string
	Apps     map[string]*cloudApp
	// Blobs are the uploaded packages: name in the container, SHA-256 of the content.
	Blobs map[string]string
	// Failures says how often a command fails before it works; -1 is for ever.
	Failures map[string]int
	Calls    []call
}

// cloudApp is one function app.
type cloudApp struct {
	Group    string
	Host     string
	Role     string // the tag
	Key      string
	Settings map[string]string
}

// call is one call of a tool.
type call struct {
	Tool    string
	Command string            // the words before the first option
	Options map[string]string // an option that stands alone is there with ""
	Dir     string
	Env     map[string]string
}

// optionsOf are the commands that the scripts may use, with the options that they may give. Each was compared with
// the help of Azure CLI 2.91.
var optionsOf = map[string][]string{
	"account show":                        {"query", "output"},
	"group create":                        {"name", "location", "output"},
	"group show":                          {"name", "output"},
	"functionapp list":                    {"resource-group", "query", "output"},
	"functionapp config appsettings list": {"resource-group", "name", "query", "output"},
	"functionapp config appsettings set":  {"resource-group", "name", "settings", "output"},
	"functionapp restart":                 {"resource-group", "name", "output"},
	"functionapp keys list":               {"resource-group", "name", "query", "output"},
	"storage account show":                {"name", "query", "output"},
	"storage blob exists":                 {"auth-mode", "account-name", "container-name", "name", "query", "output"},
	"storage blob upload": {
		"auth-mode", "account-name", "container-name", "name", "file", "content-type", "no-progress",
		"only-show-errors", "output",
	},
	"rest":                    {"method", "url", "output"},
	"deployment group create": {"resource-group", "name", "parameters", "query", "output", "what-if"},
}

// parseCall splits the arguments of a tool.
func parseCall(tool string, args []string) (call, error) {
	c := call{Tool: tool, Options: map[string]string{}, Env: map[string]string{}}
	c.Dir, _ = os.Getwd() // a test that needs it sees that it is empty
	for _, name := range []string{"FUNCTIONS_WORKER_RUNTIME", "API_PACKAGE_URL", "API_PREVIOUS_PACKAGE_URL", "LISTENER_PACKAGE_URL", "LISTENER_PREVIOUS_PACKAGE_URL"} {
		if v, ok := os.LookupEnv(name); ok {
			c.Env[name] = v
		}
	}
	var words []string
	for i := 0; i < len(args); i++ {
		option, isOption := strings.CutPrefix(args[i], "--")
		switch {
		case !isOption && len(c.Options) == 0:
			words = append(words, args[i])
		case !isOption:
			return c, fmt.Errorf("unrecognized argument: %s", args[i])
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "--"):
			c.Options[option] = args[i+1]
			i++
		default:
			c.Options[option] = ""
		}
	}
	c.Command = strings.Join(words, " ")
	if tool != "az" {
		return c, nil
	}
	known, ok := optionsOf[c.Command]
	if !ok {
		return c, fmt.Errorf("az has no command %q here", c.Command)
	}
	for option := range c.Options {
		if !slices.Contains(known, option) {
			return c, fmt.Errorf("az %s: unrecognized argument --%s", c.Command, option)
		}
	}
	return c, nil
}

// standIn answers one call.
func standIn(dir, tool string, args []string) error {
	file := filepath.Join(dir, "cloud.json")
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var azure cloud
	if err := json.Unmarshal(data, &azure); err != nil {
		return err
	}
	c, err := parseCall(tool, args)
	azure.Calls = append(azure.Calls, c)
	if err == nil {
		if n := azure.Failures[c.Command]; n != 0 {
			azure.Failures[c.Command] = max(n-1, -1)
			err = errors.New("(AuthorizationFailed) the stand-in was told to fail")
		} else if tool == "func" {
			err = azure.publish(c)
		} else if tool == "azd" || tool == "make" {
			fmt.Println("the stand-in did it") // and it is recorded
		} else {
			err = azure.answer(c)
		}
	}
	data, marshalError := json.Marshal(azure)
	return errors.Join(err, marshalError, os.WriteFile(file, data, 0o600))
}

var (
	byName    = regexp.MustCompile(`^\[\?name=='([^']+)'\]\.\[id, resourceGroup, defaultHostName\]$`)
	byTag     = regexp.MustCompile(`^\[\?tags\.userconnectivity=='([^']+)'\]\.name$`)
	someNames = regexp.MustCompile(`^\[\?contains\(\[([^\]]+)\], name\)\]\.\[name, value\]$`)
)

// answer plays az. It prints what the real one prints for the query of the script, and refuses any other query.
func (a *cloud) answer(c call) error {
	if !a.LoggedIn {
		return errors.New("Please run 'az login' to setup account.")
	}
	app, err := a.app(c)
	if err != nil {
		return err
	}
	query := c.Options["query"]
	unknown := fmt.Errorf("the stand-in does not know the query %s", query)
	switch c.Command {
	case "account show":
		if query == "id" {
			fmt.Println("subscription-id")
			break
		}
		fmt.Println("Test Subscription")
	case "group create":
		a.Groups = append(a.Groups, c.Options["name"])
	case "group show":
		if !slices.Contains(a.Groups, c.Options["name"]) {
			return errors.New("(ResourceGroupNotFound)")
		}
	case "functionapp list":
		for _, name := range slices.Sorted(maps.Keys(a.Apps)) {
			found := a.Apps[name]
			if group, ok := c.Options["resource-group"]; ok && group != found.Group {
				continue
			}
			if m := byName.FindStringSubmatch(query); m != nil {
				if m[1] == name {
					fmt.Printf("/subscriptions/s/resourceGroups/%s/providers/Microsoft.Web/sites/%s\t%s\t%s\n", found.Group, name, found.Group, found.Host)
				}
			} else if m := byTag.FindStringSubmatch(query); m != nil {
				if m[1] == found.Role {
					fmt.Println(name)
				}
			} else {
				return unknown
			}
		}
	case "functionapp config appsettings list":
		m := someNames.FindStringSubmatch(query)
		if m == nil {
			return unknown
		}
		for _, quoted := range strings.Split(m[1], ", ") {
			if name := strings.Trim(quoted, "'"); app.Settings[name] != "" {
				fmt.Printf("%s\t%s\n", name, app.Settings[name])
			}
		}
	case "functionapp config appsettings set":
		return app.set(c.Options["settings"])
	case "functionapp keys list":
		if app.Key == "" {
			fmt.Println("None")
		} else {
			fmt.Println(app.Key)
		}
	case "storage account show":
		fmt.Printf("https://%s.blob.core.windows.net/\n", c.Options["name"])
	case "storage blob exists":
		_, there := a.Blobs[c.Options["name"]]
		fmt.Println(there)
	case "storage blob upload":
		data, err := os.ReadFile(c.Options["file"])
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		a.Blobs[c.Options["name"]] = hex.EncodeToString(sum[:])
	case "deployment group create":
		fmt.Println("{}")
	}
	return nil
}

// app returns the app that a call is about, or nil when it is about none.
func (a *cloud) app(c call) (*cloudApp, error) {
	if !strings.HasPrefix(c.Command, "functionapp ") || c.Command == "functionapp list" {
		return nil, nil
	}
	app := a.Apps[c.Options["name"]]
	if app == nil || app.Group != c.Options["resource-group"] {
		return nil, errors.New("(ResourceNotFound)")
	}
	return app, nil
}

// set takes settings as az does from @file. The file must be private: a URL in it may be signed.
func (a *cloudApp) set(argument string) error {
	name, ok := strings.CutPrefix(argument, "@")
	if !ok {
		return errors.New("the settings are an argument, for everybody to see")
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if info.Mode().Perm() != 0o600 {
		return fmt.Errorf("the file with the settings has mode %v", info.Mode())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, &a.Settings)
}

// publish plays func azure functionapp publish: a new signed URL each time.
func (a *cloud) publish(c call) error {
	name, ok := strings.CutPrefix(c.Command, "azure functionapp publish ")
	app := a.Apps[name]
	if !ok || app == nil {
		return fmt.Errorf("can't find app with name %q", name)
	}
	if _, ok := c.Options["no-build"]; !ok || len(c.Options) != 1 {
		return fmt.Errorf("options are %v", c.Options)
	}
	n := 0
	for _, one := range a.Calls {
		if one.Tool == "func" {
			n++
		}
	}
	app.Settings["WEBSITE_RUN_FROM_PACKAGE"] = fmt.Sprintf("https://st.blob.core.windows.net/function-releases/%d.zip?sv=1&sig=%s", n, signature)
	return nil
}

// signature is a secret in the URLs of func. It must never be printed.
const signature = "TOPSECRETSIGNATURE%3D"
