// Package identity is the app's Microsoft Entra identity. The credential chain is built on first use and
// never delays the start; a failed attempt is not remembered.
package identity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"golang.org/x/sync/singleflight"
)

const (
	// redisScope is what a token for Azure Redis is asked for.
	// See https://learn.microsoft.com/azure/redis/entra-for-authentication.
	redisScope = "https://redis.azure.com/.default"
	// RedisConnectionLife is how long a connection to Redis lives before it is opened anew with a fresh token.
	RedisConnectionLife = 10 * time.Minute
	// redisTokenLeft is how long a token must still be valid when it opens a connection: the connection's life
	// and 5 minutes, since Redis closes the connection when its token ends.
	redisTokenLeft = RedisConnectionLife + 5*time.Minute
	// tokenTimeout bounds the request for a token.
	tokenTimeout = 20 * time.Second
	// sameTokenWait is how soon a token that is too old, but still valid, is asked for again: the chain may hand
	// out the same one from its cache.
	sameTokenWait = 30 * time.Second
)

// Identity hands out the credential of this app and its tokens for Redis. It is safe for concurrent use.
type Identity struct {
	build func() (azcore.TokenCredential, error)
	now   func() time.Time

	mu         sync.Mutex
	credential azcore.TokenCredential

	// tokens has one request for a token at a time, which alone uses what follows.
	tokens     singleflight.Group
	redisToken azcore.AccessToken
	askedAt    time.Time

	// renewal is why the token for Redis could not be renewed, nil while it can.
	renewal atomic.Pointer[renewalFault]
}

// renewalFault is a token that ends and has no successor.
type renewalFault struct {
	err  error
	ends time.Time
}

// New returns the identity of the environment: a managed identity in Azure (AZURE_CLIENT_ID names a
// user-assigned one), the developer's login elsewhere.
func New() *Identity {
	return &Identity{now: time.Now, build: func() (azcore.TokenCredential, error) {
		return azidentity.NewDefaultAzureCredential(nil)
	}}
}

// Credential returns the credential chain, building it on first use.
func (i *Identity) Credential() (azcore.TokenCredential, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.credential == nil {
		c, err := i.build()
		if err != nil {
			return nil, fmt.Errorf("build the credential chain (set AZURE_CLIENT_ID to the app's user-assigned identity, or log in with az login): %w", err)
		}
		i.credential = c
	}
	return i.credential, nil
}

// Redis returns the user and password that open a connection to Azure Redis: the identity's object id and a
// token that outlives the connection. It returns when ctx ends; the request for a token that it began has a limit of its
// own, is shared by all who wait for it, and goes on.
func (i *Identity) Redis(ctx context.Context) (user, password string, err error) {
	token := i.tokens.DoChan("", func() (any, error) { return i.redisTokenNow(context.WithoutCancel(ctx)) })
	select {
	case t := <-token:
		if t.Err != nil {
			return "", "", t.Err
		}
		password = t.Val.(string)
	case <-ctx.Done():
		return "", "", fmt.Errorf("wait for an Entra token for Redis: %w", ctx.Err())
	}
	if user = ObjectID(password); user == "" {
		return "", "", errors.New("read the object id in the Entra token for Redis: it is not a JSON web token with a claim oid")
	}
	return user, password, nil
}

// redisTokenNow returns the token at hand, or a new one where that is too old for a new connection.
func (i *Identity) redisTokenNow(ctx context.Context) (string, error) {
	now := i.now()
	left := i.redisToken.ExpiresOn.Sub(now)
	if left < redisTokenLeft && (left <= time.Minute || now.Sub(i.askedAt) >= sameTokenWait) {
		token, err := i.token(ctx)
		i.askedAt = now
		i.renewal.Store(nil)
		if err != nil && ctx.Err() == nil {
			i.renewal.Store(&renewalFault{err, i.redisToken.ExpiresOn})
		}
		if err != nil && left <= time.Minute {
			problem, mend := Diagnose(err)
			return "", fmt.Errorf("get an Entra token for Redis (%s): %s; %s. The identity also needs an access policy assignment on the database "+
				"(az redisenterprise database access-policy-assignment create): %w", redisScope, problem, mend, &wordsError{err})
		}
		if err == nil { // else the one at hand still serves for a while
			i.redisToken = token
		}
	}
	return i.redisToken.Token, nil
}

// Warnings says when the token for Redis cannot be renewed, while the one at hand still serves: connections are lost
// when it ends.
func (i *Identity) Warnings() []string {
	fault := i.renewal.Load()
	if fault == nil || !i.now().Before(fault.ends) {
		return nil // there is none to renew, or connections fail with the reason already
	}
	problem, mend := Diagnose(fault.err)
	return []string{fmt.Sprintf("the Entra token for Redis cannot be renewed, and the one at hand ends in %s: %s; %s: %s",
		fault.ends.Sub(i.now()).Round(time.Second), problem, mend, Words(fault.err))}
}

func (i *Identity) token(ctx context.Context) (azcore.AccessToken, error) {
	credential, err := i.Credential()
	if err != nil {
		return azcore.AccessToken{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	return credential.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{redisScope}})
}

// ObjectID reads the object id of the identity out of one of its tokens, "" when it has none. The token comes from
// Entra over TLS, so its signature is the resource's to check.
func ObjectID(token string) string {
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
		return ""
	}
	oid, _ := claims["oid"].(string)
	return oid
}

// said finds what Entra or the identity endpoint says for people, in the HTTP answers that the SDK puts in its errors.
var (
	said   = regexp.MustCompile(`"(?:error_description|message)"\s*:\s*"((?:[^"\\]|\\.)*)"`)
	dashes = regexp.MustCompile(`-{8,}`)
)

// Words is the error of a credential in one line of at most 400 bytes: what Entra or the identity endpoint said, or
// else the text of the SDK. It has no secret in it.
func Words(err error) string {
	const limit = 400
	text := dashes.ReplaceAllString(err.Error(), " ")
	if m := said.FindStringSubmatch(text); m != nil {
		text = m[1]
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit-3], "") + "..."
	}
	return text
}

// wordsError is the error of a credential, with its words as text.
type wordsError struct{ err error }

func (e *wordsError) Error() string { return Words(e.err) }
func (e *wordsError) Unwrap() error { return e.err }

// Diagnose says why there is no token and what mends that, from the error of a credential: whose token it would have
// been, in words for somebody who has to act. Both are one line without secrets.
func Diagnose(err error) (problem, mend string) {
	client := os.Getenv("AZURE_CLIENT_ID")
	who, registration := "the identity of this app", "<client-id>"
	switch {
	case client == "":
	case uuid.Validate(client) != nil: // it may be anything, a secret, too
		return "there is no token for " + who + ": AZURE_CLIENT_ID is not a client id, which looks like 11111111-2222-4333-8444-555555555555",
			"set it as shown by: az identity show --resource-group <resource-group> --name <identity> --query clientId"
	default:
		who, registration = "the identity with the client id "+client, client
	}
	newSecret := "make a new one with: az ad app credential reset --id " + registration + ", and set AZURE_CLIENT_SECRET"
	switch text := strings.ToLower(err.Error()); {
	case strings.Contains(text, "aadsts7000222"):
		return "there is no token for " + who + ": the secret of the app registration is expired", newSecret
	case strings.Contains(text, "aadsts7000215"):
		return "there is no token for " + who + ": AZURE_CLIENT_SECRET is not the secret of the app registration", newSecret
	case strings.Contains(text, "aadsts700016"), strings.Contains(text, "aadsts90002"):
		return "there is no token for " + who + ": the tenant does not know it",
			"set AZURE_CLIENT_ID and AZURE_TENANT_ID as shown by: az ad sp show --id " + registration + " --query \"[appId,appOwnerOrganizationId]\""
	case strings.Contains(text, "aadsts700024"):
		return "there is no token for " + who + ": its assertion is not valid at this time", "set the clock of this machine: sudo timedatectl set-ntp true"
	}
	return "there is no token for " + who,
		"check it with: az functionapp identity show --resource-group <resource-group> --name <app>; on a workstation: az login"
}
