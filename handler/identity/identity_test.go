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
	is.now = is.now.Add(11 * time.Minute)
	if _, _, err := id.Redis(t.Context()); err == nil || !strings.Contains(err.Error(), "access policy assignment") {
		t.Fatal(err)
	}
	is.fault = nil
	if _, _, err := id.Redis(t.Context()); err != nil {
		t.Fatal(err)
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
		if _, err := objectID(token); err == nil || token != "" && strings.Contains(err.Error(), token) {
			t.Errorf("%q: %v", token, err)
		}
	}
}
