package infra_test

import (
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// targets returns the targets of the Makefile.
func targets(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(readText(t, "../Makefile"), -1) {
		all[m[1]] = true
	}
	if len(all) == 0 {
		t.Fatal("the Makefile has no targets")
	}
	return all
}

// command is make where it is a command, not a word of a sentence.
var command = regexp.MustCompile("(?m)(?:^ *|`|: )make ([a-z][a-z-]*)")

func TestCommandsInTheTextsExist(t *testing.T) {
	t.Parallel()
	known := targets(t)
	seen := map[string]bool{}
	for _, path := range []string{"../docs/deploy.md", "../.github/workflows/deploy.yml", "publish/common.sh", "publish/publish.sh", "publish/rollback.sh", "publish/provision.sh", "publish/azd.sh", "../azure.yaml"} {
		text := readText(t, path)
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			seen[m[1]] = true
			if !known[m[1]] {
				t.Errorf("%s says make %s, which the Makefile does not have", path, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`\b(?:infra|docs|\.github)/[A-Za-z0-9_./-]*[A-Za-z]`).FindAllString(text, -1) {
			if m == "infra/presence.bicepparam" { // the reader's own
				continue
			}
			if _, err := os.Stat("../" + m); err != nil {
				t.Errorf("%s names %s, which is not there", path, m)
			}
		}
	}
	for _, target := range []string{"package", "provision", "publish", "rollback", "test"} {
		if !seen[target] {
			t.Errorf("no text says make %s", target)
		}
	}
}

func TestEveryAlertIsExplained(t *testing.T) {
	t.Parallel()
	_, table, _ := strings.Cut(readText(t, "../docs/deploy.md"), "| Alert | says |")
	table, _, _ = strings.Cut(table, "\n\n")
	for name := range alerts {
		if !strings.Contains(table, "`"+name+"`") {
			t.Errorf("the table of alerts does not have %s", name)
		}
	}
}

func TestShellBlocksAreShell(t *testing.T) {
	t.Parallel()
	blocks := regexp.MustCompile("(?ms)^ *```sh\n(.*?)^ *```").FindAllStringSubmatch(readText(t, "../docs/deploy.md"), -1)
	if len(blocks) < 10 {
		t.Fatalf("only %d blocks were found", len(blocks))
	}
	for _, block := range blocks {
		check := exec.Command("sh", "-n")
		check.Stdin = strings.NewReader(block[1])
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, block[1])
		}
	}
}

// The rows of the cost table from EP1 to the sum.
func TestTheCostTableAddsUp(t *testing.T) {
	t.Parallel()
	_, table, found := strings.Cut(readText(t, "../docs/deploy.md"), "| EP1 (instances x P1)")
	if !found {
		t.Fatal("there is no row EP1 (instances x P1)")
	}
	sums := make([]int, 3)
	for line := range strings.Lines("| EP1 (instances x P1)" + table) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 6 {
			t.Fatalf("the table ends without a sum: %s", line)
		}
		total := strings.Contains(cells[1], "Sum a month")
		for i, cell := range cells[2:5] {
			n, err := strconv.Atoi(strings.ReplaceAll(strings.TrimSpace(cell), ",", ""))
			if err != nil {
				t.Fatal(err)
			}
			if total && n != sums[i] {
				t.Errorf("column %d says %d, its rows make %d", i+1, n, sums[i])
			}
			sums[i] += n
		}
		if total {
			return
		}
	}
}

func TestTheWorkflowKeepsNoSecret(t *testing.T) {
	t.Parallel()
	text := readText(t, "../.github/workflows/deploy.yml")
	if strings.Contains(text, "secrets.") {
		t.Error("the workflow uses a secret")
	}
	var flow struct {
		Permissions map[string]string
		Jobs        map[string]struct {
			Steps []struct {
				Run, Uses string
				Env       map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(text), &flow); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"contents": "read", "id-token": "write"}; !maps.Equal(flow.Permissions, want) {
		t.Errorf("permissions are %v, want %v", flow.Permissions, want)
	}
	var steps []string
	for _, step := range flow.Jobs["publish"].Steps {
		steps = append(steps, step.Run+step.Uses+step.Env["APP"])
	}
	order := []string{"make test", "azure/login@v2", `make publish APP="$APP"${{ vars.LISTENER_APP }}`, `make publish APP="$APP"${{ vars.API_APP }}`}
	at := -1
	for _, want := range order {
		i := slices.Index(steps, want)
		if i <= at {
			t.Errorf("%q does not come in this order: %q", want, steps)
		}
		at = i
	}
}
