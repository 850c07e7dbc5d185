// Package cosmosfake is a stand-in for the Azure Cosmos DB account over HTTP, for tests with the real client. It
// answers the few requests that the handler makes with the semantics of the real service: keys and tokens are
// checked, documents live in partitions that do not see each other, ETags guard writes, patches have
// conditions, queries have pages, and documents expire. What it does not know it refuses with 400 or 405.
//
// The charges that it reports are an approximation (see charge.go); the number of requests is exact.
package cosmosfake

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Config is what an account is made of. The zero value of a field is its default.
type Config struct {
	// Key is the account key, in base64. Without one no key is valid.
	Key string
	// Token is the one Entra token that is accepted; any other gets 401.
	Token string
	// Denied makes requests with the valid Token fail with 403, as without a role assignment.
	Denied bool
	// Now is the clock of timestamps and expiry. Default: time.Now.
	Now func() time.Time
	// Ahead is how far the clock that checks signatures, and that the header Date tells, is ahead of this machine's.
	Ahead time.Duration
	// MaxPage bounds the documents of one page below what the client asks for. Default: 100.
	MaxPage int
}

// Operation is one request as Faults sees it.
type Operation struct {
	// Kind is account, database, container, create, read, replace, upsert, patch, delete or query.
	Kind      string
	Container string
	// ID is that of the document in the path, or in the body of a create and an upsert.
	ID string
	// N counts the requests of this Kind, from 1.
	N int
}

// Fault is how a request goes wrong.
type Fault struct {
	// Status and Substatus are answered, with Message as the text.
	Status, Substatus int
	Message           string
	// RetryAfter is sent with the answer, in whole milliseconds.
	RetryAfter time.Duration
	// Applied has the request done before the fault, so that only its answer is lost.
	Applied bool
	// Drop closes the connection without an answer.
	Drop bool
	// Hold keeps the answer back until it is closed or the client has gone.
	Hold <-chan struct{}
	// Stale has a read without a session token answered by a replica that missed the last write of the document.
	Stale bool
}

// Server is the account. It is an http.Handler, safe for concurrent use.
type Server struct {
	config Config
	key    []byte

	mu        sync.Mutex
	databases map[string]*database
	writes    int64 // counts all writes: ETags, session tokens and resource ids come from it
	counts    map[string]int
	charges   map[string]float64
	fault     func(Operation) *Fault
	inFlight  int
	peak      int
}

type database struct{ containers map[string]*container }

type container struct {
	ID         string       `json:"id"`
	Key        partitionKey `json:"partitionKey"`
	TTL        *int         `json:"defaultTtl,omitempty"`
	partitions map[string]map[string]*document
}

type partitionKey struct {
	Paths   []string `json:"paths"`
	Kind    string   `json:"kind"`
	Version int      `json:"version"`
}

type document struct {
	rid      int64
	lsn      int64
	etag     string
	body     map[string]any
	modified time.Time
	// before is the version that a stale replica still has; nil when the last write created the document.
	before *document
}

// New returns an account without databases.
func New(c Config) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxPage == 0 {
		c.MaxPage = 100
	}
	key, err := base64.StdEncoding.DecodeString(c.Key)
	if err != nil {
		panic("cosmosfake: key is not base64")
	}
	return &Server{
		config: c, key: key, databases: map[string]*database{}, counts: map[string]int{}, charges: map[string]float64{},
	}
}

// CreateContainer makes a container, and its database where that is missing. The path is that of the partition
// key, such as /pk. A ttl of 0 turns expiry off, -1 on without a default; otherwise it is in seconds.
func (s *Server) CreateContainer(db, id, path string, ttl int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.databases[db] == nil {
		s.databases[db] = &database{containers: map[string]*container{}}
	}
	c := &container{ID: id, Key: partitionKey{Paths: []string{path}, Kind: "Hash", Version: 2}, partitions: map[string]map[string]*document{}}
	if ttl != 0 {
		c.TTL = &ttl
	}
	s.databases[db].containers[id] = c
}

// Faults has f decide over each request; nil ends all faults. f must not call the server.
func (s *Server) Faults(f func(Operation) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Requests returns how many requests of each kind came, those that failed included.
func (s *Server) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counts)
}

// Charges returns the request units that were charged for each kind of request.
func (s *Server) Charges() map[string]float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.charges)
}

// Peak returns the largest number of requests that were served at the same time.
func (s *Server) Peak() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peak
}

// Reset forgets what Requests, Charges and Peak tell.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts, s.charges, s.peak = map[string]int{}, map[string]float64{}, 0
}

// Document returns a stored document with its system properties, and whether there is one.
func (s *Server) Document(db, container, pk, id string) (map[string]any, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.databases[db]
	if d == nil || d.containers[container] == nil {
		return nil, false
	}
	doc := s.find(d.containers[container], pk, id)
	if doc == nil {
		return nil, false
	}
	return doc.body, true
}

// request is one request on its way through the server.
type request struct {
	*http.Request
	body      []byte
	kind      string
	path      []string // unescaped
	container *container
	pk        string
	stale     bool
}

// response is what a request is answered with.
type response struct {
	status    int
	substatus int
	message   string
	body      any
	header    map[string]string
	charge    float64
}

func failed(status, substatus int, message string, args ...any) response {
	return response{status: status, substatus: substatus, message: fmt.Sprintf(message, args...), charge: failureCharge}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxDocument+1))
	if err != nil {
		return // the client has gone
	}
	req, refused := parse(r, body)
	if refused == nil {
		refused = s.authorize(req)
	}
	fault := s.begin(req)
	defer s.end()

	if fault.Hold != nil {
		select {
		case <-fault.Hold:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	var answer response
	faulty := fault.Status != 0 || fault.Drop
	switch {
	case refused != nil:
		answer = *refused
	case faulty && !fault.Applied:
	default:
		req.stale = fault.Stale
		answer = s.serve(req)
	}
	if fault.Drop {
		panic(http.ErrAbortHandler)
	}
	if faulty && refused == nil {
		answer = failed(fault.Status, fault.Substatus, "%s", fault.Message)
		if fault.RetryAfter > 0 {
			answer.header = map[string]string{"x-ms-retry-after-ms": strconv.FormatInt(fault.RetryAfter.Milliseconds(), 10)}
		}
		if fault.Status == http.StatusTooManyRequests {
			answer.charge = throttledCharge
		}
	}
	s.write(w, req, answer)
}

// clock is the time as the account tells it.
func (s *Server) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.config.Ahead)
}

// SetDenied changes Config.Denied.
func (s *Server) SetDenied(denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Denied = denied
}

// SetAhead changes Config.Ahead.
func (s *Server) SetAhead(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.Ahead = d
}

// begin counts the request and returns the fault that it meets.
func (s *Server) begin(r *request) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[r.kind]++
	s.inFlight++
	s.peak = max(s.peak, s.inFlight)
	if s.fault == nil {
		return Fault{}
	}
	op := Operation{Kind: r.kind, N: s.counts[r.kind]}
	if len(r.path) > 3 {
		op.Container = r.path[3]
	}
	if len(r.path) == 6 {
		op.ID = r.path[5]
	} else {
		var named struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(r.body, &named) == nil {
			op.ID = named.ID
		}
	}
	if f := s.fault(op); f != nil {
		return *f
	}
	return Fault{}
}

func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
}

func (s *Server) write(w http.ResponseWriter, r *request, answer response) {
	s.mu.Lock()
	s.charges[r.kind] += answer.charge
	session := "0:-1#" + strconv.FormatInt(s.writes, 10)
	s.mu.Unlock()

	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Date", s.clock().UTC().Format(http.TimeFormat))
	h.Set("x-ms-request-charge", strconv.FormatFloat(answer.charge, 'f', 2, 64))
	h.Set("x-ms-session-token", session)
	h.Set("x-ms-activity-id", r.Header.Get("x-ms-activity-id"))
	if answer.substatus != 0 {
		h.Set("x-ms-substatus", strconv.Itoa(answer.substatus))
	}
	for name, value := range answer.header {
		h.Set(name, value)
	}
	text := []byte{}
	if answer.status >= 400 {
		text, _ = json.Marshal(map[string]string{"code": http.StatusText(answer.status), "message": answer.message})
	} else if answer.body != nil {
		text, _ = json.Marshal(answer.body)
	}
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(answer.status)
	_, _ = w.Write(text) // a client that has gone is no matter of the server
}

// parse names the request by its path and method.
func parse(r *http.Request, body []byte) (*request, *response) {
	req := &request{Request: r, body: body, kind: "unknown"}
	for _, segment := range strings.Split(strings.Trim(r.URL.EscapedPath(), "/"), "/") {
		text, err := url.PathUnescape(segment)
		if err != nil {
			f := failed(http.StatusBadRequest, 0, "path cannot be unescaped")
			return req, &f
		}
		req.path = append(req.path, text)
	}
	p := req.path
	documents := len(p) >= 5 && p[0] == "dbs" && p[2] == "colls" && p[4] == "docs"
	switch {
	case len(p) == 1 && p[0] == "":
		req.kind = "account"
	case len(p) <= 2 && p[0] == "dbs":
		req.kind = "database"
	case len(p) <= 4 && p[0] == "dbs" && p[2] == "colls":
		req.kind = "container"
	case documents && len(p) == 5 && r.Method == http.MethodPost:
		switch {
		case strings.EqualFold(r.Header.Get("x-ms-documentdb-query"), "true"):
			req.kind = "query"
		case strings.EqualFold(r.Header.Get("x-ms-documentdb-is-upsert"), "true"):
			req.kind = "upsert"
		default:
			req.kind = "create"
		}
	case documents && len(p) == 6:
		req.kind = map[string]string{
			http.MethodGet: "read", http.MethodPut: "replace", http.MethodPatch: "patch", http.MethodDelete: "delete",
		}[r.Method]
	}
	if req.kind == "" || req.kind == "unknown" {
		req.kind = "unknown"
		f := failed(http.StatusMethodNotAllowed, 0, "%s %s is not served", r.Method, r.URL.Path)
		return req, &f
	}
	return req, nil
}

// authorize checks the signature as the service does: over the verb, the kind of resource, its name and the date.
func (s *Server) authorize(r *request) *response {
	refuse := func(status, substatus int, message string) *response {
		f := failed(status, substatus, "%s", message)
		return &f
	}
	header, err := url.QueryUnescape(r.Header.Get("Authorization"))
	if err != nil || header == "" {
		return refuse(http.StatusUnauthorized, 0, "Required Header authorization is missing.")
	}
	parts := map[string]string{}
	for _, part := range strings.SplitN(header, "&", 3) {
		name, value, _ := strings.Cut(part, "=")
		parts[name] = value
	}
	if parts["type"] == "aad" {
		if s.config.Token == "" || parts["sig"] != s.config.Token {
			return refuse(http.StatusUnauthorized, 0, "The token is not valid for this account.")
		}
		s.mu.Lock()
		denied := s.config.Denied
		s.mu.Unlock()
		if denied {
			return refuse(http.StatusForbidden, 5300, "Request blocked by Auth: principal does not have required RBAC permissions.")
		}
		return nil
	}
	date := r.Header.Get("x-ms-date")
	at, err := time.Parse(http.TimeFormat, date)
	if err != nil || s.clock().Sub(at).Abs() > 15*time.Minute {
		return refuse(http.StatusForbidden, 0, "The authorization token is not valid at the current time.")
	}
	kinds := map[int]string{1: "", 2: "dbs", 4: "colls", 5: "docs", 6: "docs"}
	kind, link := kinds[len(r.path)], strings.Join(r.path, "/")
	switch {
	case len(r.path) == 1 && r.path[0] == "dbs":
		kind, link = "dbs", ""
	case len(r.path) == 3:
		kind, link = "colls", strings.Join(r.path[:2], "/")
	case len(r.path) == 5:
		link = strings.Join(r.path[:4], "/")
	}
	mac := hmac.New(sha256.New, s.key)
	fmt.Fprintf(mac, "%s\n%s\n%s\n%s\n\n", strings.ToLower(r.Method), kind, link, strings.ToLower(date))
	sig, err := base64.StdEncoding.DecodeString(parts["sig"])
	if err != nil || len(s.key) == 0 || !hmac.Equal(sig, mac.Sum(nil)) {
		return refuse(http.StatusUnauthorized, 0, "The input authorization token can't serve the request. The wrong key is being used.")
	}
	return nil
}

func (s *Server) serve(r *request) response {
	switch r.kind {
	case "account":
		return s.account(r)
	case "database":
		return s.database(r)
	case "container":
		return s.container(r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	db := s.databases[r.path[1]]
	if db == nil || db.containers[r.path[3]] == nil {
		return failed(http.StatusNotFound, 1003, "Owner resource does not exist")
	}
	r.container = db.containers[r.path[3]]
	var values []any
	if err := json.Unmarshal([]byte(r.Header.Get("x-ms-documentdb-partitionkey")), &values); err != nil || len(values) != 1 {
		return failed(http.StatusBadRequest, 0, "the partition key of the request is missing or malformed")
	}
	pk, ok := values[0].(string)
	if !ok {
		return failed(http.StatusBadRequest, 0, "only texts are served as partition keys")
	}
	r.pk = pk
	switch r.kind {
	case "create", "upsert":
		return s.create(r)
	case "read":
		return s.read(r)
	case "replace":
		return s.replace(r)
	case "patch":
		return s.patch(r)
	case "delete":
		return s.remove(r)
	}
	return s.query(r)
}

func (s *Server) account(r *request) response {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	region := []map[string]string{{"name": "Local", "databaseAccountEndpoint": scheme + "://" + r.Host + "/"}}
	return response{status: http.StatusOK, body: map[string]any{
		"id": "local", "_rid": r.Host, "writableLocations": region, "readableLocations": region,
		"enableMultipleWriteLocations": false,
		"userConsistencyPolicy":        map[string]string{"defaultConsistencyLevel": "Session"},
	}}
}

func (s *Server) database(r *request) response {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodPost && len(r.path) == 1 {
		var named struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(r.body, &named); err != nil || named.ID == "" {
			return failed(http.StatusBadRequest, 0, "a database needs an id")
		}
		if s.databases[named.ID] != nil {
			return failed(http.StatusConflict, 0, "the database exists")
		}
		s.databases[named.ID] = &database{containers: map[string]*container{}}
		return response{status: http.StatusCreated, body: named, charge: metadataCharge}
	}
	if r.Method != http.MethodGet || len(r.path) != 2 {
		return failed(http.StatusMethodNotAllowed, 0, "only reading and creating a database is served")
	}
	if s.databases[r.path[1]] == nil {
		return failed(http.StatusNotFound, 0, "Resource Not Found")
	}
	return response{status: http.StatusOK, body: map[string]string{"id": r.path[1]}, charge: metadataCharge}
}

func (s *Server) container(r *request) response {
	s.mu.Lock()
	defer s.mu.Unlock()
	db := s.databases[r.path[1]]
	if db == nil {
		return failed(http.StatusNotFound, 1003, "Owner resource does not exist")
	}
	if r.Method == http.MethodPost && len(r.path) == 3 {
		c := &container{partitions: map[string]map[string]*document{}}
		if err := json.Unmarshal(r.body, c); err != nil || c.ID == "" || len(c.Key.Paths) != 1 {
			return failed(http.StatusBadRequest, 0, "a container needs an id and one path of a partition key")
		}
		if db.containers[c.ID] != nil {
			return failed(http.StatusConflict, 0, "the container exists")
		}
		db.containers[c.ID] = c
		return response{status: http.StatusCreated, body: c, charge: metadataCharge}
	}
	if r.Method != http.MethodGet || len(r.path) != 4 {
		return failed(http.StatusMethodNotAllowed, 0, "only reading and creating a container is served")
	}
	c := db.containers[r.path[3]]
	if c == nil {
		return failed(http.StatusNotFound, 0, "Resource Not Found")
	}
	return response{status: http.StatusOK, body: c, charge: metadataCharge}
}

// find returns a document that has not expired.
func (s *Server) find(c *container, pk, id string) *document {
	d := c.partitions[pk][id]
	if d == nil || s.expired(c, d) {
		return nil
	}
	return d
}

// expired follows the rules of the service: without a default of the container the ttl of a document has no effect.
func (s *Server) expired(c *container, d *document) bool {
	if c.TTL == nil {
		return false
	}
	ttl := *c.TTL
	if own, ok := d.body["ttl"].(json.Number); ok {
		if n, err := own.Int64(); err == nil {
			ttl = int(n)
		}
	}
	return ttl > 0 && !s.config.Now().Before(d.modified.Add(time.Duration(ttl)*time.Second))
}

// store writes a document and returns its new version.
func (s *Server) store(r *request, id string, body map[string]any) *document {
	s.writes++
	partition := r.container.partitions[r.pk]
	if partition == nil {
		partition = map[string]*document{}
		r.container.partitions[r.pk] = partition
	}
	old := s.find(r.container, r.pk, id)
	d := &document{
		rid: s.writes, lsn: s.writes, etag: fmt.Sprintf("\"%08x-0000-0d00-0000-%012x\"", s.writes, s.writes), body: body,
		modified: s.config.Now().Truncate(time.Second),
	}
	if old != nil {
		d.rid = old.rid
		d.before = &document{rid: old.rid, lsn: old.lsn, etag: old.etag, body: old.body, modified: old.modified}
	}
	body["_rid"] = strconv.FormatInt(d.rid, 36)
	body["_self"] = "docs/" + strconv.FormatInt(d.rid, 36) + "/"
	body["_etag"] = d.etag
	body["_attachments"] = "attachments/"
	body["_ts"] = json.Number(strconv.FormatInt(d.modified.Unix(), 10))
	partition[id] = d
	return d
}

// answer is the success of a write: without the document where the client prefers that.
func (r *request) answer(status int, d *document, charge float64) response {
	a := response{status: status, header: map[string]string{"etag": d.etag}, charge: charge}
	if r.Method == http.MethodGet || !strings.EqualFold(r.Header.Get("Prefer"), "return=minimal") {
		a.body = d.body
	}
	return a
}

func (r *request) matches(d *document) bool {
	tag := r.Header.Get("If-Match")
	return tag == "" || tag == "*" || tag == d.etag
}

// object reads the document in the body, and refuses one that is not of the partition that the header names.
func (r *request) object() (map[string]any, string, *response) {
	refuse := func(status int, message string) (map[string]any, string, *response) {
		f := failed(status, 0, "%s", message)
		return nil, "", &f
	}
	if len(r.body) > maxDocument {
		return refuse(http.StatusRequestEntityTooLarge, "the request is larger than 2 MB")
	}
	body, err := decode(r.body)
	if err != nil {
		return refuse(http.StatusBadRequest, "the body is not a JSON object")
	}
	if depth(body) > maxDepth {
		return refuse(http.StatusBadRequest, "the document is nested too deep")
	}
	id, _ := body["id"].(string)
	if id == "" || len(id) > 1023 || strings.ContainsAny(id, `/\?#`) {
		return refuse(http.StatusBadRequest, "the id is missing, too long, or has one of the characters / \\ ? #")
	}
	if pk, ok := lookup(body, strings.Split(r.container.Key.Paths[0][1:], "/")); !ok || pk != r.pk {
		return refuse(http.StatusBadRequest, "PartitionKey extracted from document doesn't match the one specified in the header")
	}
	for _, name := range []string{"_rid", "_self", "_etag", "_attachments", "_ts"} {
		delete(body, name)
	}
	return body, id, nil
}

// depth is how many levels of objects and arrays a value has.
func depth(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, member := range v {
			n = max(n, depth(member))
		}
		return n + 1
	case []any:
		for _, element := range v {
			n = max(n, depth(element))
		}
		return n + 1
	}
	return 0
}

func (s *Server) create(r *request) response {
	body, id, refused := r.object()
	if refused != nil {
		return *refused
	}
	old := s.find(r.container, r.pk, id)
	switch {
	case old != nil && r.kind == "create":
		return failed(http.StatusConflict, 0, "Entity with the specified id already exists in the system.")
	case old != nil && !r.matches(old):
		return failed(http.StatusPreconditionFailed, 0, "One of the specified pre-condition is not met")
	case old != nil:
		return r.answer(http.StatusOK, s.store(r, id, body), replaceCharge(r.body))
	}
	return r.answer(http.StatusCreated, s.store(r, id, body), createCharge(r.body))
}

func (s *Server) read(r *request) response {
	d := s.find(r.container, r.pk, r.path[5])
	if d != nil && r.stale && r.lsn() < d.lsn {
		d = d.before
	}
	if d == nil {
		return failed(http.StatusNotFound, 0, "Entity with the specified id does not exist in the system.")
	}
	return r.answer(http.StatusOK, d, readCharge(d.body))
}

// lsn is the write that the client's session token has seen.
func (r *request) lsn() int64 {
	_, text, _ := strings.Cut(r.Header.Get("x-ms-session-token"), "#")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s *Server) replace(r *request) response {
	body, id, refused := r.object()
	if refused != nil {
		return *refused
	}
	if id != r.path[5] {
		return failed(http.StatusBadRequest, 0, "the id of a document cannot be changed")
	}
	d := s.find(r.container, r.pk, id)
	if d == nil {
		return failed(http.StatusNotFound, 0, "Entity with the specified id does not exist in the system.")
	}
	if !r.matches(d) {
		return failed(http.StatusPreconditionFailed, 0, "One of the specified pre-condition is not met")
	}
	return r.answer(http.StatusOK, s.store(r, id, body), replaceCharge(r.body))
}

func (s *Server) remove(r *request) response {
	d := s.find(r.container, r.pk, r.path[5])
	if d == nil {
		return failed(http.StatusNotFound, 0, "Entity with the specified id does not exist in the system.")
	}
	if !r.matches(d) {
		return failed(http.StatusPreconditionFailed, 0, "One of the specified pre-condition is not met")
	}
	s.writes++
	delete(r.container.partitions[r.pk], r.path[5])
	return response{status: http.StatusNoContent, charge: deleteCharge(d.body)}
}

// living returns the documents of the partition that have not expired, oldest first.
func (s *Server) living(r *request) []*document {
	var documents []*document
	for _, d := range r.container.partitions[r.pk] {
		if !s.expired(r.container, d) {
			documents = append(documents, d)
		}
	}
	slices.SortFunc(documents, func(a, b *document) int { return int(a.rid - b.rid) })
	return documents
}
