package redisconn

import (
	"strings"
	"testing"

	"userconnectivity/handler/internal/testkit"
)

// TestServerIsSeen: whatever server it is, its name, version and limit of connections are seen.
func TestServerIsSeen(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t, "--maxclients", "777")
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	if err := client.Ping(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	s, _, _ := client.Server()
	if s.Name == "" || s.Version == "" || s.MaxClients != 777 || s.Cluster {
		t.Errorf("%+v", s)
	}
	info, err := rawClient(t, server).Info(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(info, "valkey_version:") && (s.Name != "valkey" || !strings.Contains(info, "valkey_version:"+s.Version)) {
		t.Errorf("%+v", s)
	}
}
