// Package identity is the app's Microsoft Entra identity. The credential chain is built on first use and
// never delays the start; a failed attempt is not remembered.
package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/golang-jwt/jwt/v5"
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

	redisMu    sync.Mutex
	redisToken azcore.AccessToken
	askedAt    time.Time
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
// token that outlives the connection.
func (i *Identity) Redis(ctx context.Context) (user, password string, err error) {
	i.redisMu.Lock()
	defer i.redisMu.Unlock()
	now := i.now()
	left := i.redisToken.ExpiresOn.Sub(now)
	if left < redisTokenLeft && (left <= time.Minute || now.Sub(i.askedAt) >= sameTokenWait) {
		token, err := i.token(ctx)
		i.askedAt = now
		if err != nil && left <= time.Minute {
			return "", "", fmt.Errorf("get an Entra token for Redis (%s): the app's identity needs an access policy assignment on the database "+
				"(az redisenterprise database access-policy-assignment create): %w", redisScope, err)
		}
		if err == nil { // else the one at hand still serves for a while
			i.redisToken = token
		}
	}
	user, err = objectID(i.redisToken.Token)
	return user, i.redisToken.Token, err
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

// objectID reads the object id of the identity out of its token. The token comes from Entra over TLS, so its
// signature is Redis's to check. The error never has the token in it.
func objectID(token string) (string, error) {
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
		return "", errors.New("read the object id in the Entra token for Redis: it is not a JSON web token")
	}
	oid, _ := claims["oid"].(string)
	if oid == "" {
		return "", errors.New("read the object id in the Entra token for Redis: it has no claim oid")
	}
	return oid, nil
}
