package localhost

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

const healthFunction = `{"bindings":[{"type":"httpTrigger","direction":"in","name":"req","methods":["get"],"route":"health","authLevel":"function"},{"type":"http","direction":"out","name":"res"}]}`

// TestHealthIsToldAtTheStart: what the handler says of its parts is in the first output, if it stays so.
func TestHealthIsToldAtTheStart(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	for name, test := range map[string]struct {
		reply func() reply
		want  string // "" for nothing
	}{
		"down": {func() reply {
			return reply{Status: 503, ContentType: &jsonType, Body: `{"status":"down","parts":{"redis":{"status":"down","detail":"REDIS_URL speaks TLS to a plain port"},"queue":{"status":"ok"}}}`}
		}, "\nNot well:\n  redis is down: REDIS_URL speaks TLS to a plain port\n"},
		"no JSON": {func() reply { return reply{Status: 500, Body: "oops"} }, "/api/health is not answered: status 500"},
		"well": {func() reply {
			return reply{Status: 200, ContentType: &jsonType, Body: `{"parts":{"redis":{"status":"ok"}}}`}
		}, ""},
		"well after a moment": {func() reply {
			if asked.Add(1) < 3 {
				return reply{Status: 200, ContentType: &jsonType, Body: `{"parts":{"listener":{"status":"degraded","detail":"not yet"}}}`}
			}
			return reply{Status: 200, ContentType: &jsonType, Body: `{"parts":{"listener":{"status":"ok"}}}`}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, testApp{
				functions: map[string]string{"Health": healthFunction},
				options:   Options{AuthKey: "a key that the host itself does not need"},
				script:    func(call) reply { return test.reply() },
			})
			out := r.stdout.String()
			if test.want == "" && strings.Contains(out, "Not well") || !strings.Contains(out, test.want) || !strings.Contains(out, "Ctrl-C") {
				t.Errorf("output:\n%s", out)
			}
		})
	}
}

// TestStorageOfTheFunctionsHost: the real host does not listen without it, so it is told here, without a key.
func TestStorageOfTheFunctionsHost(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // after the subtests
	const away = "127.0.0.1:1, which cannot be reached"
	for name, test := range map[string]struct {
		settings map[string]string
		want     string // "" for nothing
	}{
		"none":             {nil, ""},
		"empty":            {map[string]string{"AzureWebJobsStorage": ""}, ""},
		"emulator":         {map[string]string{"AzureWebJobsStorage": "UseDevelopmentStorage=true"}, ""},
		"reached":          {map[string]string{"AzureWebJobsStorage": "BlobEndpoint=http://" + l.Addr().String() + "/a;AccountKey=secret"}, ""},
		"away":             {map[string]string{"AzureWebJobsStorage": "AccountName=a;AccountKey=secret==;BlobEndpoint=http://127.0.0.1:1/a"}, away},
		"URI away":         {map[string]string{"AzureWebJobsStorage__blobServiceUri": "http://127.0.0.1:1?sig=secret"}, away},
		"no such account":  {map[string]string{"AzureWebJobsStorage": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=secret;EndpointSuffix=core.invalid"}, "a.blob.core.invalid:443, which cannot be reached"},
		"account by name":  {map[string]string{"AzureWebJobsStorage__accountName": "no such"}, "AzureWebJobsStorage__accountName"},
		"no connection":    {map[string]string{"AzureWebJobsStorage": "secret"}, "no connection string"},
		"wrong endpoint":   {map[string]string{"AzureWebJobsStorage": "BlobEndpoint=secret"}, "no URL"},
		"Key Vault":        {map[string]string{"AzureWebJobsStorage": "@Microsoft.KeyVault(SecretUri=https://secret.vault.azure.net/secrets/x)"}, "Key Vault"},
		"URI is no web":    {map[string]string{"AzureWebJobsStorage__blobServiceUri": "ftp://secret"}, "no URL"},
		"emulator in caps": {map[string]string{"AzureWebJobsStorage": "usedevelopmentstorage=TRUE;"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := storageAdvice(t.Context(), test.settings)
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) || strings.Contains(got, "secret") {
				t.Errorf("%q, want %q", got, test.want)
			}
			if got != "" && !strings.Contains(got, "does not start to listen") {
				t.Errorf("%q does not say what comes of it", got)
			}
		})
	}
	r := start(t, testApp{functions: map[string]string{}, environ: []string{"AzureWebJobsStorage=BlobEndpoint=http://127.0.0.1:1"}, script: func(call) reply { return ok }})
	if out := r.stdout.String(); !strings.Contains(out, "Not well:\n  AzureWebJobsStorage names "+away) {
		t.Errorf("output:\n%s", out)
	}
}
