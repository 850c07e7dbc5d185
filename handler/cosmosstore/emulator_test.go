//go:build cosmosemulator

package cosmosstore_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/eventlog/eventlogtest"
)

// endpointVariable names the endpoint of a running emulator, the npm package @vercel/cosmosdb-server.
const endpointVariable = "COSMOS_EMULATOR_ENDPOINT"

// mended mends two answers of the emulator that differ from those of the service: for a read of a document that does not
// exist it fails with 500 (undefined) instead of 404, and its ETags are not quoted.
type mended struct{ http.RoundTripper }

func (m mended) RoundTrip(r *http.Request) (*http.Response, error) {
	if tag := r.Header.Get("If-Match"); tag != "" {
		r = r.Clone(r.Context())
		r.Header.Set("If-Match", strings.Trim(tag, `"`))
	}
	answer, err := m.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if tag := answer.Header.Get("Etag"); tag != "" {
		answer.Header.Set("Etag", `"`+tag+`"`)
	}
	if answer.StatusCode == http.StatusInternalServerError && r.Method == http.MethodGet {
		body, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			return nil, err
		}
		if bytes.Contains(body, []byte("properties of undefined")) {
			answer.StatusCode, answer.Status = http.StatusNotFound, "404 Not Found"
		}
		answer.Body = io.NopCloser(bytes.NewReader(body))
	}
	return answer, nil
}

// TestEmulator runs the suite against the emulator. It does not check keys, expiry and the isolation of partitions,
// which it does not have; the fake account does.
func TestEmulator(t *testing.T) {
	endpoint := os.Getenv(endpointVariable)
	if endpoint == "" {
		t.Fatalf("%s is not set: start the emulator with cosmosdb-server --no-ssl --host 127.0.0.1 --port 8181 and set it to http://127.0.0.1:8181/", endpointVariable)
	}
	key, err := azcosmos.NewKeyCredential(accountKey)
	if err != nil {
		t.Fatal(err)
	}
	client, err := azcosmos.NewClientWithKey(endpoint, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		name := "test-" + rand.Text()
		if _, err := client.CreateDatabase(t.Context(), azcosmos.DatabaseProperties{ID: name}, nil); err != nil {
			t.Fatal(err)
		}
		db, err := client.NewDatabase(name)
		if err != nil {
			t.Fatal(err)
		}
		for id, path := range map[string]string{"events": "/pk", "users": "/id", "profiles": "/id"} {
			properties := azcosmos.ContainerProperties{ID: id, PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{path}}}
			if _, err := db.CreateContainer(t.Context(), properties, nil); err != nil {
				t.Fatal(err)
			}
		}
		return open(t, cosmosstore.Config{
			Endpoint: endpoint, Database: name, Transport: mended{http.DefaultTransport},
		})
	})
}
