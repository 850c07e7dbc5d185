package config

import (
	"slices"
	"strings"
)

// others are names beside ours that mean something to the Functions host, the platform or the Azure SDK.
var others = []string{
	"ServiceBusConnection__clientId", "ServiceBusConnection__credential", "ServiceBusConnection__tenantId", "ServiceBusConnection__clientSecret",
	"ServiceBusConnection__managedIdentityResourceId",
}

// synonyms are names that others give to what our settings are for.
var synonyms = map[string]string{
	"REDIS_PASSWORD": "REDIS_ACCESS_KEY", "REDIS_KEY": "REDIS_ACCESS_KEY", "REDIS_HOSTNAME": "REDIS_HOST",
	"REDIS_CONNECTION": "REDIS_URL", "REDIS_CONNECTION_STRING": "REDIS_URL", "COSMOS_ACCOUNT_KEY": "COSMOS_KEY",
	"SERVICEBUS_CONNECTION_STRING": "ServiceBusConnection", "AzureWebJobsServiceBus": "ServiceBusConnection",
}

// longestName bounds the names that are compared: ours have 45 letters at most.
const longestName = 64

// Misspelt returns a warning for each variable of an environment ("NAME=value") that looks like one of our settings
// and is none, with the name that is meant. The host hands its whole environment on, so that only what is very near
// is told: a name in other letters or with other separators, one or two letters off, or with a word too few or too
// many. Values are not looked at.
func Misspelt(environ []string) []string {
	known := Names()
	spelt := make([]spelling, len(known))
	for i, name := range known {
		spelt[i] = spell(name)
	}
	var warnings []string
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if len(name) > longestName || slices.Contains(known, name) || slices.Contains(others, name) || strings.HasPrefix(name, "WEBSITE_") || strings.HasPrefix(name, "FUNCTIONS_") {
			continue
		}
		if meant := nearest(name, spelt); meant != "" {
			warnings = append(warnings, name+" is no setting of this app and has no effect; was "+meant+" meant?")
		}
	}
	slices.Sort(warnings)
	return warnings
}

// spelling is a name of a setting with its words in small letters, as they are compared.
type spelling struct {
	name, joined string
	words        []string
}

func spell(name string) spelling {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return strings.ContainsRune("_-.:", r) })
	return spelling{name, strings.Join(words, ""), words}
}

// nearest returns the name that another is taken for, "" for none.
func nearest(name string, known []spelling) string {
	if meant := synonyms[name]; meant != "" {
		return meant
	}
	given := spell(name)
	best, least := "", 3
	for _, wanted := range known {
		if given.joined == wanted.joined {
			return wanted.name
		}
		allowed := 1
		if len(wanted.joined) >= 12 {
			allowed = 2
		}
		distance := allowed + 1 // at least, where the lengths differ by more
		if apart := len(given.joined) - len(wanted.joined); -allowed <= apart && apart <= allowed {
			distance = editDistance(given.joined, wanted.joined)
		}
		if len(wanted.joined) < 8 || distance > allowed {
			if !sameBut(given.words, wanted.words) {
				continue
			}
			distance = 2
		}
		if distance < least {
			best, least = wanted.name, distance
		}
	}
	return best
}

// sameBut reports whether two names begin with the same two words, and one only has words more.
func sameBut(a, b []string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	return len(a) >= 2 && len(b) == len(a)+1 && slices.Equal(a, b[:len(a)])
}

// editDistance counts the letters to insert, delete, replace or swap with their neighbour. Neither name may be longer
// than longestName.
func editDistance(a, b string) int {
	var rows [3][longestName + 1]int // the two before, and the one that is filled
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		row, before, twoBefore := &rows[i%3], &rows[(i+2)%3], &rows[(i+1)%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			differ := 1
			if a[i-1] == b[j-1] {
				differ = 0
			}
			row[j] = min(before[j]+1, row[j-1]+1, before[j-1]+differ)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], twoBefore[j-2]+1)
			}
		}
	}
	return rows[len(a)%3][len(b)]
}
