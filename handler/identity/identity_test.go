package identity

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/golang-jwt/jwt/v5"
)

// issuer is a credential whose tokens live for a while by a clock that the test moves.
type issuer struct {
	t     *testing.T
	now   time.Time
	life  time.Duration
	fault error
	asked int
	scope string
}

func (i *issuer) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	i.asked++
	i.scope = strings.Join(o.Scopes, " ")
	if i.fault != nil {
		return azcore.AccessToken{}, i.fault
	}
	text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"oid": "0b1e-object", "n": i.asked}).SignedString([]byte("k"))
	if err != nil {
		i.t.Fatal(err)
	}
	return azcore.AccessToken{Token: text, ExpiresOn: i.now.Add(i.life)}, nil
}

func setup(t *testing.T) (*Identity, *issuer) {
	is := &issuer{t: t, now: time.Unix(1_700_000_000, 0), life: time.Hour}
	return &Identity{now: func() time.Time { return is.now }, build: func() (azcore.TokenCredential, error) { return is, nil }}, is
}

func TestRedisTokenIsCachedAndRefreshedInTime(t *testing.T) {
	id, is := setup(t)
	user, first, err := id.Redis(t.Context())
	if err != nil || user != "0b1e-object" || is.scope != redisScope {
		t.Fatalf("%q %q %v", user, is.scope, err)
	}
	is.now = is.now.Add(time.Hour - redisTokenLeft)
	if _, again, _ := id.Redis(t.Context()); again != first || is.asked != 1 {
		t.Fatalf("asked %d times for a token that lives long enough", is.asked)
	}
	is.now = is.now.Add(time.Second)
	if _, fresh, _ := id.Redis(t.Context()); fresh == first || is.asked != 2 {
		t.Fatal("a token that does not outlive a connection was not refreshed")
	}
}

func TestAnOldTokenServesWhileNoneCanBeHad(t *testing.T) {
	id, is := setup(t)
	_, first, _ := id.Redis(t.Context())
	is.fault = errors.New("identity endpoint is down")
	is.now = is.now.Add(50 * time.Minute)
	for range 5 {
		if _, token, err := id.Redis(t.Context()); err != nil || token != first {
			t.Fatal(token, err)
		}
	}
	if is.asked != 2 {
		t.Errorf("asked %d times within %s", is.asked, sameTokenWait)
	}
	if w := id.Warnings(); len(w) != 1 || !strings.Contains(w[0], "cannot be renewed, and the one at hand ends in 10m0s") || !strings.Contains(w[0], "identity endpoint is down") {
		t.Errorf("%q", w)
	}
	is.now = is.now.Add(11 * time.Minute)
	if w := id.Warnings(); w != nil { // connections fail with the reason
		t.Errorf("%q", w)
	}
	if _, _, err := id.Redis(t.Context()); err == nil || !strings.Contains(err.Error(), "access policy assignment") {
		t.Fatal(err)
	}
	is.fault = nil
	if _, _, err := id.Redis(t.Context()); err != nil || id.Warnings() != nil {
		t.Fatal(err, id.Warnings())
	}
}

func TestAFailedChainIsNotRemembered(t *testing.T) {
	id, is := setup(t)
	fault := errors.New("no managed identity here")
	id.build = func() (azcore.TokenCredential, error) { return nil, fault }
	if _, err := id.Credential(); !errors.Is(err, fault) {
		t.Fatal(err)
	}
	id.build = func() (azcore.TokenCredential, error) { return is, nil }
	if _, err := id.Credential(); err != nil {
		t.Fatal(err)
	}
}

func TestOddTokensAreRefusedWithoutShowingThem(t *testing.T) {
	noOID, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": "x"}).SignedString([]byte("k"))
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", "secret-text", noOID} {
		if oid := ObjectID(token); oid != "" {
			t.Errorf("%q is of %q", token, oid)
		}
		id, is := setup(t)
		id.redisToken = azcore.AccessToken{Token: token, ExpiresOn: is.now.Add(time.Hour)}
		if _, _, err := id.Redis(t.Context()); err == nil || token != "" && strings.Contains(err.Error(), token) {
			t.Errorf("%q: %v", token, err)
		}
	}
}

func TestDiagnose(t *testing.T) {
	for name, c := range map[string]struct {
		fault, client string
		want          []string
	}{
		"no identity":    {"ManagedIdentityCredential: no managed identity found", "", []string{"the identity of this app", "az functionapp identity show", "az login"}},
		"named identity": {"no managed identity found", "11111111-2222-4333-8444-555555555555", []string{"the identity with the client id 11111111-2222-4333-8444-555555555555"}},
		"expired secret": {"AADSTS7000222: The provided client secret keys for app '1d' are expired.", "11111111-2222-4333-8444-555555555555", []string{
			"client id 11111111-2222-4333-8444-555555555555", "secret of the app registration is expired", "az ad app credential reset --id 11111111-2222-4333-8444-555555555555",
		}},
		"secret as id":     {"no managed identity found", "hunter2~secret", []string{"AZURE_CLIENT_ID is not a client id", "az identity show"}},
		"wrong secret":     {"AADSTS7000215: Invalid client secret provided.", "", []string{"AZURE_CLIENT_SECRET", "az ad app credential reset --id <client-id>"}},
		"wrong tenant":     {"AADSTS90002: Tenant 'x' not found.", "", []string{"tenant", "AZURE_TENANT_ID", "az ad sp show"}},
		"clock of an hour": {"AADSTS700024: Client assertion is not within its valid time range.", "", []string{"clock"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AZURE_CLIENT_ID", c.client)
			problem, mend := Diagnose(errors.New(c.fault))
			if strings.Contains(problem+mend, "hunter2") {
				t.Errorf("%s; %s shows what is no client id", problem, mend)
			}
			for _, want := range c.want {
				if !strings.Contains(problem+"; "+mend, want) {
					t.Errorf("%s; %s\ndoes not say %q", problem, mend, want)
				}
			}
		})
	}
}

func TestWords(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"ManagedIdentityCredential: no managed\n\tidentity found", "ManagedIdentityCredential: no managed identity found"},
		{"POST https://x\n------------------\nRESPONSE 401\n----------------\n{\n  \"error\": \"invalid_client\",\n  \"error_description\": \"AADSTS7000222: of 'x' \\\"y\\\" are expired.\"\n}", `AADSTS7000222: of 'x' \"y\" are expired.`},
		{"GET http://x\n----------\n" + strings.Repeat("é", 400), "GET http://x " + strings.Repeat("é", 192) + "..."},
	} {
		if got := Words(errors.New(c.text)); got != c.want {
			t.Errorf("%q\nbecomes %q\nwant    %q", c.text, got, c.want)
		}
	}
}

// slowIssuer gives its token when it is told to.
type slowIssuer struct {
	*issuer
	begun chan struct{}
	give  chan struct{}
}

func (s *slowIssuer) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	s.begun <- struct{}{}
	select {
	case <-s.give:
		return s.issuer.GetToken(ctx, o)
	case <-ctx.Done():
		return azcore.AccessToken{}, ctx.Err()
	}
}

// TestATokenOutlivesWhoAskedForIt: whoever waits for a short time only does not cancel, again and again, the request
// that all wait for.
func TestATokenOutlivesWhoAskedForIt(t *testing.T) {
	id, is := setup(t)
	slow := &slowIssuer{issuer: is, begun: make(chan struct{}, 100), give: make(chan struct{})}
	id.build = func() (azcore.TokenCredential, error) { return slow, nil }
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error, 1)
		go func() {
			_, _, err := id.Redis(ctx)
			gaveUp <- err
		}()
		if len(slow.begun) == 0 {
			begun := <-slow.begun // the request is under way
			slow.begun <- begun
		}
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	close(slow.give)
	if user, _, err := id.Redis(t.Context()); err != nil || user == "" {
		t.Fatalf("%q, %v", user, err)
	}
	if n := len(slow.begun); n != 1 || is.asked != 1 {
		t.Errorf("%d requests", n)
	}
}
