package infra_test

import (
	"strings"
	"testing"
)

// mistakes are changes of the templates that somebody could make, each with words of what review must say. What is
// replaced must be there, and once only unless it is in every place that it stands.
var mistakes = []struct {
	name, file, old, new, want string
}{
	// app settings
	{"a typo in a setting", "main.bicep", "  COSMOS_ENDPOINT: cosmos", "  COSMOS_ENDPIONT: cosmos", "sets COSMOS_ENDPIONT, which nothing reads"},
	{"a setting in the wrong case", "main.bicep", "  REDIS_HOST: empty", "  Redis_Host: empty", "there is no REDIS_HOST"},
	{"a setting that is missing", "main.bicep", "  MAX_INSTANCES: string(maxInstances)\n", "", "has no setting MAX_INSTANCES"},
	{"one underscore where two are due", "main.bicep", "  ServiceBusConnection__credential:", "  ServiceBusConnection_credential:", "has no setting ServiceBusConnection__credential"},
	{"a typo in a setting behind a condition", "main.bicep", "{ REDIS_ACCESS_KEY: existingRedisAccessKey }", "{ REDIS_ACCES_KEY: existingRedisAccessKey }", "sets REDIS_ACCES_KEY, which nothing reads"},
	{"a typo in a setting behind the other condition", "main.bicep", "{ EXPIRATION_ROUTES: expirationRoutes }", "{ EXPIRATION_ROUTE: expirationRoutes }", "sets EXPIRATION_ROUTE, which nothing reads"},
	{"a typo in a setting of one kind of storage", "modules/functionapp.bicep", "  WEBSITE_CONTENTSHARE: name", "  WEBSITE_CONTENT_SHARE: name", "sets WEBSITE_CONTENT_SHARE, which nothing reads"},
	{"a typo in a setting of the platform", "modules/functionapp.bicep", "  AzureFunctionsWebHost__hostid: name", "  AzureFunctionsWebHost__hostId: name", "has no setting AzureFunctionsWebHost__hostid"},
	{"the switch of functions in the form of another plan", "main.bicep", "'AzureWebJobs_${name}_Disabled', name => 'true')\nvar listener", "'AzureWebJobs.${name}.Disabled', name => 'true')\nvar listener", "is not a name that the plan takes"},
	{"a function that does not exist", "main.bicep", "  'DeadLetters'\n", "  'DeadLetter'\n", "sets AzureWebJobs_DeadLetter_Disabled"},
	{"a function that no app is given", "main.bicep", "  'UserEvents'\n", "", "the function UserEvents: in the listener app"},
	{"a value that the handler refuses", "main.bicep", "SESSION_TTL_SECONDS: string(sessionTtlSeconds)", "SESSION_TTL_SECONDS: '${sessionTtlSeconds}s'", "SESSION_TTL_SECONDS"},
	{"a value that is no text", "main.bicep", "MAX_INSTANCES: string(maxInstances)", "MAX_INSTANCES: maxInstances", "value is int, not string"},
	// names of properties
	{"a property of a nested resource", "modules/topic.bicep", "      requiresDuplicateDetection: true", "      requireDuplicateDetection: true", "has no property requireDuplicateDetection"},
	{"a property of a resource nested in a nested one", "modules/topic.bicep", "        forwardTo: forwardTo", "        forwardsTo: forwardTo", "has no property forwardsTo"},
	{"a property behind a conditional spread", "modules/servicebus.bicep", "    minimumTlsVersion: '1.2'\n", "    ...(sku == 'Premium' ? { minimumTlsVerion: '1.2' } : {})\n", "has no property minimumTlsVerion"},
	{"a property behind a condition", "modules/cosmos.bicep", "      autoscaleSettings: {", "      autoScaleSettings: {", "has no property autoScaleSettings"},
	{"a property of a conditional resource", "modules/storage.bicep", "    principalType: publisherPrincipalType", "    principleType: publisherPrincipalType", "has no property principleType"},
	{"a property inside a loop", "modules/alerts.bicep", "        metricMeasureColumn: a.column", "          metricMeasureColum: a.column", "has no property metricMeasureColum"},
	{"a property inside a lambda", "modules/cosmos.bicep", "indexedPath => { path: indexedPath }", "indexedPath => { paths: indexedPath }", "has no property paths"},
	{"a property that is read", "modules/servicebus.bicep", "namespace.properties.serviceBusEndpoint", "namespace.properties.serviceBusEndpont", "has no property serviceBusEndpont"},
	{"a property that is read only", "modules/redis.bicep", "    highAvailability: 'Enabled'", "    provisioningState: 'Succeeded'\n    highAvailability: 'Enabled'", "provisioningState is read-only"},
	{"a property that is required", "modules/redis.bicep", "    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'\n", "", "publicNetworkAccess is missing"},
	{"a property beside its place", "modules/functionapp.bicep", "    httpsOnly: true\n", "    http20Enabled: true\n", "has no property http20Enabled"},
	// kinds and values
	{"a number as a text", "modules/plan.bicep", "    capacity: minInstances", "    capacity: '1'", "capacity is string, not int"},
	{"a text as a number", "modules/servicebus.bicep", "    minimumTlsVersion: '1.2'", "    minimumTlsVersion: 12", "minimumTlsVersion is int, not string"},
	{"a list as a text", "modules/cosmos.bicep", "paths: [c.partitionKey]", "paths: c.partitionKey", "paths is string, not a list"},
	{"a value that is none of the listed", "modules/redis.bicep", "clusteringPolicy: 'NoCluster'", "clusteringPolicy: 'NonCluster'", "want one of EnterpriseCluster"},
	{"a kind of a resource", "modules/functionapp.bicep", "kind: 'functionapp,linux'", "kind: 'functionapp,linx'", "want one of functionapp,linux"},
	{"a tier", "modules/plan.bicep", "tier: 'ElasticPremium'", "tier: 'ElasticPremum'", "want one of ElasticPremium"},
	{"a duration", "modules/servicebus.bicep", "'PT10M'", "'10M'", "is no duration"},
	{"a lock over the limit", "modules/servicebus.bicep", "var lockDuration = 'PT5M'", "var lockDuration = 'PT6M'", "the lock is PT6M"},
	{"more deliveries than there may be", "main.bicep", "var maxDeliveryCount = 600", "var maxDeliveryCount = 2001", "max delivery count is 2001"},
	{"a kind that chooses the shape", "modules/alerts.bicep", "criterionType: 'StaticThresholdCriterion'\n          name: 'dead letters'", "criterionType: 'StaticThreshold'\n          name: 'dead letters'", "criterionType is StaticThreshold"},
	{"a dimension of a metric", "modules/alerts.bicep", "name: 'StatusCode'", "name: 'Statuscode'", "has no dimension Statuscode"},
	{"a metric", "modules/alerts.bicep", "metricName: 'HealthCheckStatus'", "metricName: 'HealthCheckState'", "has no metric HealthCheckState"},
	{"a category of logs", "modules/redis.bicep", "category: 'ConnectionEvents'", "category: 'ConnectionEvent'", "has no category ConnectionEvent"},
	{"a column of a query", "modules/alerts.bicep", "column: 'oldestOutboxMs'", "column: 'oldestOutboxMS'", "has no column oldestOutboxMS"},
	{"a capability", "modules/cosmos.bicep", "'EnableServerless'", "'EnableServerles'", "want one of EnableServerless"},
	{"a fixed value of a setting", "main.bicep", "ServiceBusConnection__credential: 'managedidentity'", "ServiceBusConnection__credential: 'managedIdentity'", "want \"managedidentity\""},
	{"an endpoint of another part", "main.bicep", "COSMOS_ENDPOINT: cosmos.outputs.endpoint", "COSMOS_ENDPOINT: 'https://${serviceBus.outputs.host}'", "COSMOS_ENDPOINT is"},
	{"an id of another part", "main.bicep", "serviceBusId: serviceBus.outputs.id", "serviceBusId: cosmos.outputs.id", "has no metric DeadletteredMessages"},
	{"an id of nothing", "modules/functionapp.bicep", "serverFarmId: planId", "serverFarmId: '${planId}s'", "which is not deployed"},
	{"a role for nobody", "modules/servicebus.bicep", "    principalId: principalId\n    principalType: 'ServicePrincipal'\n    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)", "    principalId: identityId\n    principalType: 'ServicePrincipal'\n    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)", "the apps may not receive from heartbeats"},
	{"a queue without its role", "modules/servicebus.bicep", "    name: 'heartbeats-rejected'\n    receive: false\n    send: true", "    name: 'heartbeats-rejected'\n    receive: false\n    send: false", "the apps may not send to heartbeats-rejected"},
	{"a location", "modules/alerts.bicep", "  location: 'global'\n", "  location: location\n", "want global"},
	{"a queue that an alert names", "modules/alerts.bicep", "'heartbeats-rejected']", "'heartbeat-rejected']", "the alert rejected watches"},
	{"a word of a query", "modules/alerts.bicep", "Message has 'listener report'", "Message has 'listener-report'", "the alert expiry-lag watches"},
	{"a severity", "modules/alerts.bicep", "    severity: 0\n    threshold: 1", "    severity: 3\n    threshold: 1", "the alert listener-down watches"},
	{"a role of another service", "modules/storage.bicep", "'0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'", "'090c5cfd-751d-490a-894a-3ce6f1109419'", "is not one for a Microsoft.Storage/storageAccounts"},
	// types, versions, names of resources
	{"a version that does not exist", "modules/cosmos.bicep", "sqlDatabases/containers@2026-03-15", "sqlDatabases/containers@2026-03-16", "there is no type"},
	{"a version of a resource that exists", "modules/functionapp.bicep", "storageAccounts@2026-09-01' existing", "storageAccounts@2026-09-02' existing", "there is no type"},
	{"a decorator", "modules/functionapp.bicep", "@allowed(", "@allow(", "is not a decorator"},
	{"a part of a connection string", "modules/functionapp.bicep", ";AccountKey=", ";AcountKey=", "AzureWebJobsStorage is"},
	{"a time to live", "modules/cosmos.bicep", "eventRetentionDays * 86400", "eventRetentionDays * 8640", "the container events (events)"},
	{"an index", "modules/cosmos.bicep", "'/user/?', ", "", "the container events (events)"},
	{"a parameter file of another template", "small.bicepparam", "using './main.bicep'", "using './main.bicpe'", "uses"},
	{"a type", "modules/storage.bicep", "fileServices/shares@", "fileServices/share@", "there is no type"},
	{"a name with a dash", "main.bicep", "var storageName = 'st${prefix}${suffix}'", "var storageName = 'st-${prefix}${suffix}'", "cannot have the name"},
	{"a name that is too long", "main.bicep", "'${prefix}-listener-${suffix}'", "'${prefix}-expiration-listener-${suffix}'", "cannot have the name"},
	{"a name that is taken", "main.bicep", "var listenerName = '${prefix}-listener-${suffix}'", "var listenerName = '${prefix}-api-${suffix}'", "has the same id"},
	{"a name that --what-if cannot know", "modules/storage.bicep", "guid(account.id, identityId, role)", "guid(account.id, principalId, role)", "--what-if is blind"},
	{"a parent of another type", "modules/storage.bicep", "  parent: blobs\n", "  parent: account\n", "cannot be the parent"},
	// modules, parameters, outputs, names
	{"a parameter that a module lacks", "main.bicep", "    retentionDays: logRetentionDays", "    retentionInDays: logRetentionDays", "has no parameter retentionInDays"},
	{"a parameter that a module needs", "main.bicep", "    sharedKeys: storageAuth == 'keys'\n    zoneRedundant", "    zoneRedundant", "the parameter sharedKeys is missing"},
	{"a parameter of another kind", "main.bicep", "serverless: cosmosThroughput == 'serverless'", "serverless: cosmosThroughput", "serverless is string, not bool"},
	{"a parameter that is not allowed", "main.bicep", "    role: 'listener'", "    role: 'listner'", "want one of [api listener]"},
	{"an output that a module lacks", "main.bicep", "cosmos.outputs.endpoint", "cosmos.outputs.endPoint", "there is no endPoint"},
	{"an output of another kind", "main.bicep", "output redisConnections int = redisConnections", "output redisConnections string = redisConnections", "is int, not string"},
	{"an output of a module that is not deployed", "main.bicep", "redisId: empty(existingRedisHost) ? redis!.outputs.id : existingRedisId", "redisId: redis!.outputs.id", "a module that is not deployed"},
	{"a name that is not declared", "modules/alerts.bicep", "threshold: redisMaxClients * 80 / 100", "threshold: maxClients * 80 / 100", "maxClients is not declared"},
	{"a member of a variable", "modules/servicebus.bicep", "if (q.send)", "if (q.sends)", "there is no sends"},
	{"a function of the language", "modules/alerts.bicep", "take(prefix, 12)", "takes(prefix, 12)", "takes is not a function"},
	{"a condition that is no bool", "modules/storage.bicep", "= if (sharedKeys) {", "= if (publisherPrincipalId) {", "is string, not bool"},
	{"a parameter that nothing uses", "main.bicep", "retentionDays: logRetentionDays", "retentionDays: 30", "param logRetentionDays is not used"},
	{"a value of a parameter file", "large.bicepparam", "param planSku = 'EP1'", "param planSku = 'EP4'", "planSku is EP4"},
	{"a parameter of a parameter file", "small.bicepparam", "param apiMaxInstances", "param apiMaximumInstances", "has no parameter apiMaximumInstances"},
	{"a text without an end", "modules/plan.bicep", "tier: 'ElasticPremium'", "tier: 'ElasticPremium", "a text without an end"},
	{"a brace without an end", "modules/plan.bicep", "    family: 'EP'\n    capacity: minInstances\n  }", "    family: 'EP'\n    capacity: minInstances", ""},
	{"a private endpoint that is missing", "main.bicep", "      { name: 'cosmos', group: 'Sql', zone: 'privatelink.documents.azure.com' }\n", "", "is closed, and its endpoint for Sql"},
	{"a DNS zone", "main.bicep", "'privatelink.servicebus.windows.net'", "'privatelink.servicebus.windows.com'", "want privatelink.servicebus.windows.net"},
	{"a part of a service", "main.bicep", "group: 'redisEnterprise'", "group: 'redisCache'", "endpoint for redisEnterprise"},
	{"a delegation behind a variable", "modules/network.bicep", "      serviceName:", "      service:", "has no property service"},
	{"a door that stays open", "modules/cosmos.bicep", "publicAccess ? 'Enabled' : 'Disabled'", "'Enabled'", "param publicAccess is not used"},
	// what the templates are to refuse
	{"a check that lets everything pass", "main.bicep", "apiMinInstances <= apiMaxInstances ?", "apiMinInstances <= 20 ?", "do not refuse it with \"apiMinInstances"},
	{"names without the checks", "main.bicep", "var suffix = empty(refusals) ?", "var suffix = !empty(refusals) ?", "refused"},
	{"the health check of nothing", "modules/functionapp.bicep", "healthCheckPath: '/api/live'", "healthCheckPath: '/api/lives'", "asks for /api/lives"},
}

func TestPlantedMistakesAreFound(t *testing.T) {
	t.Parallel()
	sources, shapes, names := sourcesOfTemplates(t), types(t), folders(t)
	for _, one := range mistakes {
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			changed := map[string]string{}
			for path, source := range sources {
				changed[path] = source
			}
			if !strings.Contains(sources[one.file], one.old) {
				t.Fatalf("%s has no %q", one.file, one.old)
			}
			changed[one.file] = strings.Replace(sources[one.file], one.old, one.new, 1)
			found := strings.Join(review(changed, shapes, names), "\n")
			if found == "" || !strings.Contains(found, one.want) {
				t.Errorf("review does not say %q but:\n%s", one.want, found)
			}
		})
	}
}
