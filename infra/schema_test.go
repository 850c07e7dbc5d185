package infra_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The shapes of the resource types that the templates use are in testdata/types.json, from the published types of Azure:
//
//	"name!"     the property is required        "name~"   it is read-only
//	"=A|=B"     one of these                    "=A|string" the service names these; others are taken for mistakes here
//	"=2"        this number
//	"duration"  as PT5M                         [shape]   a list
//	{"*": ...}  any other property              {"?kind": {...}} the property kind chooses the shape
//
// Strings that the published types leave open, but of which these templates need one, are narrowed to it. A type, an
// API version or a property that is missing there is a mistake, or is to be added from the published types.
func types(t *testing.T) map[string]any {
	t.Helper()
	data, err := os.ReadFile("testdata/types.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// memberOf finds a property in a shape.
func memberOf(shape map[string]any, name string) (any, bool) {
	for _, key := range []string{name, name + "!", name + "~", name + "!~", "*"} {
		if member, ok := shape[key]; ok {
			return member, true
		}
	}
	return nil, false
}

// oneNumber is the shape of a number that can have one value only.
var oneNumber = regexp.MustCompile(`^=\d+$`)

var duration = regexp.MustCompile(`^P(\d+D)?(T(\d+H)?(\d+M)?(\d+S)?)?$`)

// misfits returns what is wrong with a value for a shape.
func misfits(value, shape any, where string) []string {
	if value == nil {
		return nil // as if it were not there
	}
	kind := kindOf(value)
	switch s := shape.(type) {
	case string:
		switch {
		case s == "any":
			return nil
		case s == "string" || s == "int" || s == "bool":
			if kind != s {
				return []string{fmt.Sprintf("%s is %s, not %s", where, kind, s)}
			}
		case kind == "int" && oneNumber.MatchString(s):
			if s != fmt.Sprint("=", value) {
				return []string{fmt.Sprintf("%s is %v, want %s", where, value, s[1:])}
			}
		case kind != "string":
			return []string{fmt.Sprintf("%s is %s, not string", where, kind)}
		case s == "duration":
			if text := value.(string); !duration.MatchString(text) || strings.HasSuffix(text, "T") || text == "P" {
				return []string{fmt.Sprintf("%s is %q, which is no duration such as PT5M", where, text)}
			}
		default:
			words := strings.Split(s, "|")
			if !slices.Contains(words, "="+value.(string)) {
				return []string{fmt.Sprintf("%s is %q, want one of %s", where, value, strings.ReplaceAll(strings.TrimSuffix(s, "|string"), "=", ""))}
			}
		}
		return nil
	case []any:
		list, ok := value.([]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %s, not a list", where, kind)}
		}
		var all []string
		for i, one := range list {
			all = append(all, misfits(one, s[0], fmt.Sprintf("%s[%d]", where, i))...)
		}
		return all
	case map[string]any:
		object, ok := value.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %s, not an object", where, kind)}
		}
		return misfitsOfObject(object, s, where)
	}
	return []string{fmt.Sprintf("%s: types.json has a strange shape", where)}
}

func misfitsOfObject(object, shape map[string]any, where string) []string {
	for key, shapes := range shape {
		tag, ok := strings.CutPrefix(key, "?")
		if !ok {
			continue
		}
		// The last part of a name, where the name of a resource chooses.
		chosen, _ := object[tag].(string)
		of := shapes.(map[string]any)
		if of[chosen] == nil {
			return []string{fmt.Sprintf("%s.%s is %v, want one of %v", where, tag, object[tag], slices.Sorted(maps.Keys(of)))}
		}
		return misfitsOfObject(object, of[chosen].(map[string]any), where)
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(object)) {
		_, readOnly := shape[name+"~"]
		member, ok := memberOf(shape, name)
		switch {
		case readOnly:
			all = append(all, fmt.Sprintf("%s.%s is read-only", where, name))
		case !ok:
			all = append(all, fmt.Sprintf("%s has no property %s", where, name))
		default:
			all = append(all, misfits(object[name], member, where+"."+name)...)
		}
	}
	for key := range shape {
		if name, ok := strings.CutSuffix(key, "!"); ok && object[name] == nil {
			all = append(all, fmt.Sprintf("%s.%s is missing", where, name))
		}
	}
	slices.Sort(all)
	return all
}

// rulesOfNames are those of the service for the last part of a name, by type.
var rulesOfNames = compiled(map[string]string{
	"Microsoft.Authorization/roleAssignments":                           `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`,
	"Microsoft.Cache/redisEnterprise":                                   `[A-Za-z0-9](-?[A-Za-z0-9]){0,58}`,
	"Microsoft.Cache/redisEnterprise/databases":                         `default`,
	"Microsoft.Cache/redisEnterprise/databases/accessPolicyAssignments": `[A-Za-z0-9]{1,60}`,
	"Microsoft.DocumentDB/databaseAccounts":                             `[a-z0-9][a-z0-9-]{1,42}[a-z0-9]`,
	"Microsoft.DocumentDB/databaseAccounts/sqlDatabases":                `[^/\\?# ]{1,255}`,
	"Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers":     `[^/\\?# ]{1,255}`,
	"Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments":          `[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`,
	"Microsoft.Insights/actionGroups":                                   `[^:<>+/&%\\?|]{1,259}[^:<>+/&%\\?|. ]`,
	"Microsoft.Insights/components":                                     `[A-Za-z0-9_.()-]{1,259}[A-Za-z0-9_()-]`,
	"Microsoft.Insights/diagnosticSettings":                             `[^<>*%&:\\?+/]{1,260}`,
	"Microsoft.Insights/metricAlerts":                                   `[^*#&+:<>?@%{}\\/]{1,259}[^*#&+:<>?@%{}\\/. ]`,
	"Microsoft.Insights/scheduledQueryRules":                            `[^*<>%{}&:\\?/#|]{1,259}[^*<>%{}&:\\?/#|. ]`,
	"Microsoft.ManagedIdentity/userAssignedIdentities":                  `[A-Za-z0-9][A-Za-z0-9_-]{2,127}`,
	"Microsoft.Network/privateDnsZones":                                 `privatelink\.[a-z0-9.]+`,
	"Microsoft.Network/privateDnsZones/virtualNetworkLinks":             `[A-Za-z0-9][A-Za-z0-9_.-]{0,78}[A-Za-z0-9_]`,
	"Microsoft.Network/privateEndpoints":                                `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}[A-Za-z0-9_]`,
	"Microsoft.Network/privateEndpoints/privateDnsZoneGroups":           `[A-Za-z0-9-]{1,80}`,
	"Microsoft.Network/virtualNetworks":                                 `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}[A-Za-z0-9_]`,
	"Microsoft.OperationalInsights/workspaces":                          `[A-Za-z0-9][A-Za-z0-9-]{2,61}[A-Za-z0-9]`,
	"Microsoft.ServiceBus/namespaces":                                   `[A-Za-z](-?[A-Za-z0-9]){5,49}`,
	"Microsoft.ServiceBus/namespaces/queues":                            `[A-Za-z0-9]([A-Za-z0-9._/-]{0,258}[A-Za-z0-9])?`,
	"Microsoft.ServiceBus/namespaces/topics":                            `[A-Za-z0-9]([A-Za-z0-9._/-]{0,258}[A-Za-z0-9])?`,
	"Microsoft.ServiceBus/namespaces/topics/subscriptions":              `[A-Za-z0-9]([A-Za-z0-9._-]{0,48}[A-Za-z0-9])?`,
	"Microsoft.Storage/storageAccounts":                                 `[a-z0-9]{3,24}`,
	"Microsoft.Storage/storageAccounts/blobServices":                    `default`,
	"Microsoft.Storage/storageAccounts/blobServices/containers":         `[a-z0-9](-?[a-z0-9]){2,62}`,
	"Microsoft.Storage/storageAccounts/fileServices":                    `default`,
	"Microsoft.Storage/storageAccounts/fileServices/shares":             `[a-z0-9](-?[a-z0-9]){2,62}`,
	"Microsoft.Web/serverfarms":                                         `[A-Za-z0-9-]{1,60}`,
	// The host id is the name of the app, and takes 32 characters, lower case, no dash first or last, no two in a row.
	"Microsoft.Web/sites": `[a-z0-9](-?[a-z0-9]){1,31}`,
	"Microsoft.Web/sites/basicPublishingCredentialsPolicies": `ftp|scm`,
})

func compiled(rules map[string]string) map[string]*regexp.Regexp {
	all := map[string]*regexp.Regexp{}
	for kind, rule := range rules {
		all[kind] = regexp.MustCompile(`^(` + rule + `)$`)
	}
	return all
}

// misfit resources: what Azure would refuse of them.
func misfitsOfResources(all []*deployed, types map[string]any) []string {
	var wrong []string
	ids := map[string]*deployed{}
	for _, one := range all {
		where := fmt.Sprintf("%s:%d: %s", one.file, one.line, one.symbol)
		if other := ids[strings.ToLower(one.id)]; other != nil {
			wrong = append(wrong, fmt.Sprintf("%s has the same id as %s:%d: %s", where, other.file, other.line, other.symbol))
		}
		ids[strings.ToLower(one.id)] = one
		shape, _ := types[one.kind+"@"+one.version].(map[string]any)
		wrong = append(wrong, misfitsOfObject(known(one.body).(map[string]any), shape, where)...)
		name := one.name[strings.LastIndex(one.name, "/")+1:]
		if strings.HasSuffix(one.kind, "/queues") || strings.HasSuffix(one.kind, "/topics") {
			_, name, _ = strings.Cut(one.name, "/")
		}
		rule, ok := rulesOfNames[one.kind]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s: no rule says which names a %s may have", where, one.kind))
		} else if !rule.MatchString(name) {
			wrong = append(wrong, fmt.Sprintf("%s: a %s cannot have the name %q", where, one.kind, name))
		}
	}
	return wrong
}
