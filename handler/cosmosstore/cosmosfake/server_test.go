package cosmosfake_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/cosmosstore/cosmosfake"
)

var accountKey = base64.StdEncoding.EncodeToString([]byte("the key of the account in tests"))

func newClient(t *testing.T, endpoint, key string) *azcosmos.Client {
	t.Helper()
	credential, err := azcosmos.NewKeyCredential(key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := azcosmos.NewClientWithKey(endpoint, credential, &azcosmos.ClientOptions{
		ClientOptions: azcore.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func newContainer(t *testing.T, c cosmosfake.Config, ttl int) (*cosmosfake.Server, *azcosmos.ContainerClient) {
	t.Helper()
	c.Key = accountKey
	fake := cosmosfake.New(c)
	fake.CreateContainer("db", "things", "/pk", ttl)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	container, err := newClient(t, server.URL, accountKey).NewContainer("db", "things")
	if err != nil {
		t.Fatal(err)
	}
	return fake, container
}

func pk(text string) azcosmos.PartitionKey { return azcosmos.NewPartitionKeyString(text) }

// wantStatus checks the status that an operation failed with; 0 is success.
func wantStatus(t *testing.T, what string, err error, want int) {
	t.Helper()
	got := 0
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		got = answer.StatusCode
	} else if err != nil {
		got = -1
	}
	if got != want {
		t.Errorf("%s: status %d, want %d (%v)", what, got, want, err)
	}
}

func create(t *testing.T, c *azcosmos.ContainerClient, key, text string) azcosmos.ItemResponse {
	t.Helper()
	answer, err := c.CreateItem(t.Context(), pk(key), []byte(text), nil)
	if err != nil {
		t.Fatalf("create %s: %v", text, err)
	}
	return answer
}

func TestPartitionsDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	_, c := newContainer(t, cosmosfake.Config{}, 0)
	ctx := t.Context()
	create(t, c, "a", `{"id":"1","pk":"a","n":1}`)
	_, err := c.CreateItem(ctx, pk("a"), []byte(`{"id":"1","pk":"a"}`), nil)
	wantStatus(t, "the same id in the same partition", err, http.StatusConflict)
	create(t, c, "b", `{"id":"1","pk":"b","n":2}`)
	_, err = c.CreateItem(ctx, pk("a"), []byte(`{"id":"2","pk":"b"}`), nil)
	wantStatus(t, "header and body of different partitions", err, http.StatusBadRequest)
	_, err = c.CreateItem(ctx, pk("a"), []byte(`{"id":"2"}`), nil)
	wantStatus(t, "document without a partition key", err, http.StatusBadRequest)
	_, err = c.CreateItem(ctx, pk("a"), []byte(`{"id":"x/y","pk":"a"}`), nil)
	wantStatus(t, "id with a slash", err, http.StatusBadRequest)
	_, err = c.ReadItem(ctx, pk("c"), "1", nil)
	wantStatus(t, "read in another partition", err, http.StatusNotFound)
	answer, err := c.ReadItem(ctx, pk("b"), "1", nil)
	if err != nil || !strings.Contains(string(answer.Value), `"n":2`) || answer.ETag == "" || answer.RequestCharge != 1 {
		t.Errorf("read: %s, etag %s, charge %v, %v", answer.Value, answer.ETag, answer.RequestCharge, err)
	}
	if got := query(t, c, "a", "SELECT * FROM c", nil); got != "1:1" {
		t.Errorf("query in partition a found %s, want only its own", got)
	}
}

func TestETagsGuardWrites(t *testing.T) {
	t.Parallel()
	_, c := newContainer(t, cosmosfake.Config{}, 0)
	ctx := t.Context()
	old := create(t, c, "a", `{"id":"1","pk":"a","n":1}`).ETag
	replaced, err := c.ReplaceItem(ctx, pk("a"), "1", []byte(`{"id":"1","pk":"a","n":2}`), &azcosmos.ItemOptions{IfMatchEtag: &old})
	wantStatus(t, "replace of the version that was read", err, 0)
	if replaced.ETag == old || len(replaced.Value) != 0 {
		t.Errorf("etag %s after %s, body %s; want another, and none", replaced.ETag, old, replaced.Value)
	}
	stale := &azcosmos.ItemOptions{IfMatchEtag: &old}
	_, err = c.ReplaceItem(ctx, pk("a"), "1", []byte(`{"id":"1","pk":"a","n":3}`), stale)
	wantStatus(t, "stale replace", err, http.StatusPreconditionFailed)
	_, err = c.UpsertItem(ctx, pk("a"), []byte(`{"id":"1","pk":"a","n":3}`), stale)
	wantStatus(t, "stale upsert", err, http.StatusPreconditionFailed)
	var patch azcosmos.PatchOperations
	patch.AppendSet("/n", 3)
	_, err = c.PatchItem(ctx, pk("a"), "1", patch, stale)
	wantStatus(t, "stale patch", err, http.StatusPreconditionFailed)
	_, err = c.DeleteItem(ctx, pk("a"), "1", stale)
	wantStatus(t, "stale delete", err, http.StatusPreconditionFailed)
	if got := query(t, c, "a", "SELECT * FROM c", nil); got != "1:2" {
		t.Errorf("after stale writes: %s, want 1:2", got)
	}
	_, err = c.DeleteItem(ctx, pk("a"), "1", &azcosmos.ItemOptions{IfMatchEtag: &replaced.ETag})
	wantStatus(t, "delete", err, 0)
	_, err = c.ReplaceItem(ctx, pk("a"), "1", []byte(`{"id":"1","pk":"a"}`), nil)
	wantStatus(t, "replace of a deleted document", err, http.StatusNotFound)
	upserted, err := c.UpsertItem(ctx, pk("a"), []byte(`{"id":"1","pk":"a"}`), nil)
	wantStatus(t, "upsert", err, 0)
	if upserted.RawResponse.StatusCode != http.StatusCreated {
		t.Errorf("upsert of a new document: %d, want 201", upserted.RawResponse.StatusCode)
	}
}

func TestPatchIsAppliedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	fake, c := newContainer(t, cosmosfake.Config{}, 0)
	create(t, c, "a", `{"id":"1","pk":"a","n":1,"list":[1],"deep":{"x":"y"},"on":true}`)
	type op struct {
		do, path string
		value    any
	}
	tests := []struct {
		name      string
		condition string
		ops       []op
		want      int
	}{
		{"condition that does not hold", "from c where c.n = 2", []op{{"set", "/n", 9}}, http.StatusPreconditionFailed},
		{"condition on what is missing", "from c where c.m < 2", []op{{"set", "/n", 9}}, http.StatusPreconditionFailed},
		{"condition of which one half holds", "from c where c.on = true and c.deep.x = 'z'", []op{{"set", "/n", 9}}, http.StatusPreconditionFailed},
		{"condition that is no condition", "n = 1", []op{{"set", "/n", 9}}, http.StatusBadRequest},
		{"second operation is wrong", "", []op{{"set", "/n", 9}, {"replace", "/missing", 1}}, http.StatusBadRequest},
		{"partition key", "", []op{{"set", "/pk", "b"}}, http.StatusBadRequest},
		{"eleven operations", "", make([]op, 11), http.StatusBadRequest},
		{"all that is right", "from c where c.n < 2 and c.on = true and c.deep.x = 'y'", []op{
			{"set", "/n", 2}, {"add", "/list/-", 2}, {"add", "/new", "v"}, {"remove", "/deep", nil}, {"replace", "/on", false},
		}, 0},
	}
	for _, tt := range tests { // in order: the last one finds the document unchanged
		var patch azcosmos.PatchOperations
		if tt.condition != "" {
			patch.SetCondition(tt.condition)
		}
		for _, o := range tt.ops {
			switch o.do {
			case "add":
				patch.AppendAdd(o.path, o.value)
			case "remove":
				patch.AppendRemove(o.path)
			case "replace":
				patch.AppendReplace(o.path, o.value)
			default:
				patch.AppendSet(o.path, o.value)
			}
		}
		_, err := c.PatchItem(t.Context(), pk("a"), "1", patch, nil)
		wantStatus(t, tt.name, err, tt.want)
	}
	d, _ := fake.Document("db", "things", "a", "1")
	for _, system := range []string{"_rid", "_self", "_etag", "_attachments", "_ts"} {
		delete(d, system)
	}
	text, err := json.Marshal(d)
	if want := `{"id":"1","list":[1,2],"n":2,"new":"v","on":false,"pk":"a"}`; string(text) != want || err != nil {
		t.Errorf("document = %s, want %s; %v", text, want, err)
	}
}

// query runs a query to its end and returns id:n of what it found.
func query(t *testing.T, c *azcosmos.ContainerClient, key, text string, options *azcosmos.QueryOptions) string {
	t.Helper()
	var found []string
	for pager := c.NewQueryItemsPager(text, pk(key), options); pager.More(); {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		for _, item := range page.Items {
			var d struct {
				ID string
				N  int
			}
			if err := json.Unmarshal(item, &d); err != nil {
				t.Fatal(err)
			}
			found = append(found, fmt.Sprintf("%s:%d", d.ID, d.N))
		}
	}
	return strings.Join(found, " ")
}

func TestQueries(t *testing.T) {
	t.Parallel()
	_, c := newContainer(t, cosmosfake.Config{}, 0)
	for i, n := range []int{3, 1, 2, 2, 5} {
		create(t, c, "a", fmt.Sprintf(`{"id":"%d","pk":"a","n":%d}`, i, n))
	}
	for _, size := range []int32{-1, 1, 2, 5, 10} {
		options := &azcosmos.QueryOptions{PageSizeHint: size, QueryParameters: []azcosmos.QueryParameter{{Name: "@least", Value: 2}}}
		for text, want := range map[string]string{
			"SELECT * FROM c WHERE c.n >= @least ORDER BY c.n DESC": "4:5 0:3 2:2 3:2",
			"select * from c where c.n < 3 order by c.n":            "1:1 2:2 3:2",
			"SELECT * FROM c WHERE c.pk = 'a' AND c.id = \"4\"":     "4:5",
			"SELECT * FROM c WHERE c.missing = 1":                   "",
		} {
			if got := query(t, c, "a", text, options); got != want {
				t.Errorf("pages of %d: %s found %s, want %s", size, text, got, want)
			}
		}
	}
	for _, text := range []string{"SELECT", "SELECT c.n FROM c", "SELECT * FROM c WHERE c.n LIKE 'x'", "SELECT * FROM c WHERE c.n = @unknown"} {
		_, err := c.NewQueryItemsPager(text, pk("a"), nil).NextPage(t.Context())
		wantStatus(t, text, err, http.StatusBadRequest)
	}
	junk := "junk"
	_, err := c.NewQueryItemsPager("SELECT * FROM c", pk("a"), &azcosmos.QueryOptions{ContinuationToken: &junk}).NextPage(t.Context())
	wantStatus(t, "junk continuation", err, http.StatusBadRequest)
}

func TestDocumentsExpire(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		ttl      int
		document string
		gone     bool
	}{
		{"no expiry in the container", 0, `{"id":"1","pk":"a","ttl":5}`, false},
		{"default of the container", 5, `{"id":"1","pk":"a"}`, true},
		{"own ttl, shorter", 500, `{"id":"1","pk":"a","ttl":5}`, true},
		{"own ttl, longer", 5, `{"id":"1","pk":"a","ttl":500}`, false},
		{"never", 5, `{"id":"1","pk":"a","ttl":-1}`, false},
		{"on without a default", -1, `{"id":"1","pk":"a"}`, false},
		{"on without a default, own ttl", -1, `{"id":"1","pk":"a","ttl":5}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var passed atomic.Int64
			_, c := newContainer(t, cosmosfake.Config{Now: func() time.Time { return time.Unix(1_800_000_000+passed.Load(), 0) }}, tt.ttl)
			create(t, c, "a", tt.document)
			passed.Store(4)
			_, err := c.ReadItem(t.Context(), pk("a"), "1", nil)
			wantStatus(t, "read before its time", err, 0)
			passed.Store(5)
			want := 0
			if tt.gone {
				want = http.StatusNotFound
			}
			_, err = c.ReadItem(t.Context(), pk("a"), "1", nil)
			wantStatus(t, "read after it", err, want)
			if found := query(t, c, "a", "SELECT * FROM c", nil); (found == "") != tt.gone {
				t.Errorf("query found %q", found)
			}
			_, err = c.CreateItem(t.Context(), pk("a"), []byte(tt.document), nil)
			wantStatus(t, "create again", err, map[bool]int{true: 0, false: http.StatusConflict}[tt.gone])
		})
	}
}

func TestKeysAndOwners(t *testing.T) {
	t.Parallel()
	fake := cosmosfake.New(cosmosfake.Config{Key: accountKey})
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	ctx := t.Context()
	good, wrong := newClient(t, server.URL, accountKey), newClient(t, server.URL, "d3Jvbmc=")
	_, err := wrong.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "db"}, nil)
	wantStatus(t, "wrong key", err, http.StatusUnauthorized)

	read := func() error {
		c, err := good.NewContainer("db", "th ings")
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.ReadItem(ctx, pk("a"), "a|b+c=d:e@f~g", nil)
		return err
	}
	wantOwner := func(what string, err error) {
		t.Helper()
		wantStatus(t, what, err, http.StatusNotFound)
		var answer *azcore.ResponseError
		if errors.As(err, &answer) && answer.RawResponse.Header.Get("x-ms-substatus") != "1003" {
			t.Errorf("%s: substatus %q, want 1003", what, answer.RawResponse.Header.Get("x-ms-substatus"))
		}
	}
	wantOwner("read without a database", read())
	_, err = good.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "db"}, nil)
	wantStatus(t, "create database", err, 0)
	_, err = good.CreateDatabase(ctx, azcosmos.DatabaseProperties{ID: "db"}, nil)
	wantStatus(t, "create database again", err, http.StatusConflict)
	wantOwner("read without a container", read())
	db, err := good.NewDatabase("db")
	if err != nil {
		t.Fatal(err)
	}
	properties := azcosmos.ContainerProperties{ID: "th ings", PartitionKeyDefinition: azcosmos.PartitionKeyDefinition{Paths: []string{"/pk"}}}
	_, err = db.CreateContainer(ctx, properties, nil)
	wantStatus(t, "create container", err, 0)
	wantStatus(t, "read of a document that is not there", read(), http.StatusNotFound)
	c, err := good.NewContainer("db", "th ings")
	if err != nil {
		t.Fatal(err)
	}
	create(t, c, "a", `{"id":"a|b+c=d:e@f~g","pk":"a"}`)
	wantStatus(t, "read of a document with special characters", read(), 0)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	fake, c := newContainer(t, cosmosfake.Config{}, 0)
	ctx := context.Background()
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
		if op.Kind == "create" && op.ID == "1" {
			return &cosmosfake.Fault{Status: http.StatusTooManyRequests, RetryAfter: 7 * time.Millisecond, Applied: op.N == 2}
		}
		return nil
	})
	body := []byte(`{"id":"1","pk":"a"}`)
	_, err := c.CreateItem(ctx, pk("a"), body, nil)
	wantStatus(t, "throttled", err, http.StatusTooManyRequests)
	var answer *azcore.ResponseError
	if errors.As(err, &answer) && answer.RawResponse.Header.Get("x-ms-retry-after-ms") != "7" {
		t.Errorf("retry after %q, want 7", answer.RawResponse.Header.Get("x-ms-retry-after-ms"))
	}
	_, err = c.ReadItem(ctx, pk("a"), "1", nil)
	wantStatus(t, "read after a fault before", err, http.StatusNotFound)
	_, err = c.CreateItem(ctx, pk("a"), body, nil)
	wantStatus(t, "throttled afterwards", err, http.StatusTooManyRequests)
	_, err = c.ReadItem(ctx, pk("a"), "1", nil)
	wantStatus(t, "read after a fault afterwards", err, 0)
	if got := fake.Requests(); got["create"] != 2 || got["read"] != 2 || got["account"] != 1 {
		t.Errorf("requests: %v", got)
	}
}
