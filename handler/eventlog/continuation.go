package eventlog

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strings"
)

// continuationVersion is the first character of every token, so that its form may change.
const continuationVersion = "1"

const continuationSum = 12

// Continuation makes the token that fetches the page of user's events after position, which only the store
// that made it understands. The token is URL-safe and carries a checksum over user and position.
func Continuation(user, position string) string {
	return continuationVersion + base64.RawURLEncoding.EncodeToString(append(checksum(user, position), position...))
}

// Position returns the position inside a token. It returns ErrContinuation for a token that was changed, or
// that belongs to another user.
func Position(user, continuation string) (string, error) {
	encoded, ok := strings.CutPrefix(continuation, continuationVersion)
	if !ok {
		return "", ErrContinuation
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) < continuationSum {
		return "", ErrContinuation
	}
	position := string(raw[continuationSum:])
	if subtle.ConstantTimeCompare(raw[:continuationSum], checksum(user, position)) != 1 {
		return "", ErrContinuation
	}
	return position, nil
}

func checksum(user, position string) []byte {
	sum := sha256.Sum256([]byte(continuationVersion + "\n" + user + "\n" + position))
	return sum[:continuationSum]
}
