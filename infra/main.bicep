// User Connectivity on Azure Functions: everything that runs in one resource group.
//
// One package, two function apps. The API app takes heartbeats and works the queues; it scales out. The listener
// app turns expired sessions into events; it is always on. Which functions run where is set by app settings
// (`AzureWebJobs_<Name>_Disabled`), because that is the only form that Linux Elastic Premium knows.
//
// Deploy it with infra/publish/provision.sh: ARM replaces all app settings of an app, the package URL among them,
// and the script passes on the URL that each app has now. docs/deploy.md has every step.

targetScope = 'resourceGroup'

// ---- names ---------------------------------------------------------------------------------------------------

@description('Start of every name: 3 to 11 lower-case letters and digits, a letter first.')
@minLength(3)
@maxLength(11)
param namePrefix string

@description('Region of all resources.')
param location string = resourceGroup().location

@description('Tags of all resources that take tags.')
param tags object = {}

// ---- package -------------------------------------------------------------------------------------------------

@description('URL of the package that the API app runs, or none (before the first publish). It has no default: a deployment without it would remove the code.')
@secure()
param apiPackageUrl string

@description('URL of the package that the API app ran before, or none. make rollback reads it.')
@secure()
param apiPreviousPackageUrl string

@description('URL of the package that the listener app runs, or none.')
@secure()
param listenerPackageUrl string

@description('URL of the package that the listener app ran before, or none.')
@secure()
param listenerPreviousPackageUrl string

@description('identity: storage without shared keys, publish uploads the package. keys: connection strings and Azure Files, publish with Azure Functions Core Tools.')
@allowed(['identity', 'keys'])
param storageAuth string = 'identity'

@description('Object id of who publishes (a user or a federated identity). It may then upload packages. Empty: grant it by hand.')
param publisherPrincipalId string = ''

@description('Kind of the principal in publisherPrincipalId.')
@allowed(['User', 'Group', 'ServicePrincipal'])
param publisherPrincipalType string = 'User'

// ---- apps ----------------------------------------------------------------------------------------------------

@description('Size of an instance: EP1 1 core and 3.5 GB, EP2 2 and 7, EP3 4 and 14.')
@allowed(['EP1', 'EP2', 'EP3'])
param planSku string = 'EP1'

@description('Instances of the API app that are always ready.')
@minValue(1)
@maxValue(20)
param apiMinInstances int = 1

@description('Most instances of the API app.')
@minValue(1)
@maxValue(100)
param apiMaxInstances int = 10

@description('Gives the listener a plan of its own. Without it the listener shares the cores of the API app.')
param listenerOwnPlan bool = false

@description('Instances of the listener, all always on. A second one is a hot standby.')
@minValue(1)
@maxValue(2)
param listenerInstances int = 1

@description('Spreads the instances of a plan over zones. Needs two always-ready instances and a region with zones.')
param zoneRedundant bool = false

@description('Origins of browsers that may call the API. A request from any other never reaches the handler.')
param corsOrigins array = []

@description('Seconds that a session lives after a heartbeat which names no ttl.')
@minValue(5)
@maxValue(3600)
param sessionTtlSeconds int = 45

// ---- Redis ---------------------------------------------------------------------------------------------------

@description('Size of the Azure Managed Redis that is created. Only sizes up to 25 GB: above that there is no unsharded database.')
@allowed([
  'Balanced_B0'
  'Balanced_B1'
  'Balanced_B3'
  'Balanced_B5'
  'Balanced_B10'
  'Balanced_B20'
  'MemoryOptimized_M10'
  'MemoryOptimized_M20'
  'ComputeOptimized_X3'
  'ComputeOptimized_X5'
  'ComputeOptimized_X10'
  'ComputeOptimized_X20'
])
param redisSku string = 'Balanced_B1'

@description('Writes every second to an append-only file, so that Redis keeps its data when both nodes are lost.')
param redisPersistence bool = false

@description('host:port of a Redis that exists already. Empty: a new Azure Managed Redis is created.')
param existingRedisHost string = ''

@description('Resource id of that Redis, for the alert on its connections. Empty: no such alert.')
param existingRedisId string = ''

@description('Connections that that Redis allows (maxclients of its size).')
@minValue(1)
param existingRedisMaxClients int = 250

@description('Access key of that Redis, or a Key Vault reference to it. Empty: Entra ID.')
@secure()
param existingRedisAccessKey string = ''

// ---- Service Bus ---------------------------------------------------------------------------------------------

@description('Standard passes 1,000 operations a second, about 400 events. Premium is for more.')
@allowed(['Standard', 'Premium'])
param serviceBusSku string = 'Standard'

@description('Messaging units of Premium.')
@allowed([1, 2, 4, 8, 16])
param serviceBusCapacity int = 1

@description('Name of a topic that receives the events and forwards them to the worker queue, so that others can subscribe too. Empty: events go straight to the queue.')
param eventsTopic string = ''

@description('The setting EXPIRATION_ROUTES: key patterns and the queues that their expiries go to. Empty: none.')
param expirationRoutes string = ''

@description('Names of the queues in expirationRoutes. They are created.')
param expirationQueues array = []

// ---- Cosmos DB -----------------------------------------------------------------------------------------------

@description('serverless bills each request. autoscale reserves throughput, for a steady load.')
@allowed(['serverless', 'autoscale'])
param cosmosThroughput string = 'serverless'

@description('Most RU/s of the containers events and users, each, with autoscale. The least is a tenth of it.')
@minValue(1000)
param cosmosMaxRu int = 1000

@description('Days that an event stays in the log.')
@minValue(1)
param eventRetentionDays int = 30

// ---- monitoring ----------------------------------------------------------------------------------------------

@description('Address that alerts are sent to. Empty: alerts show in the portal only.')
param alertEmail string = ''

@description('Days that logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('GB of logs that are taken in a day at most. -1: no limit.')
param logDailyQuotaGb int = 1

// ---- the connection budget -------------------------------------------------------------------------------------

// Connections that each size allows.
var redisConnectionLimits = {
  Balanced_B0: 15000
  Balanced_B1: 15000
  Balanced_B3: 15000
  Balanced_B5: 15000
  Balanced_B10: 30000
  Balanced_B20: 75000
  MemoryOptimized_M10: 15000
  MemoryOptimized_M20: 30000
  ComputeOptimized_X3: 30000
  ComputeOptimized_X5: 30000
  ComputeOptimized_X10: 75000
  ComputeOptimized_X20: 150000
}

// One for commands, one for the subscription to expired keys and maintenance.
var redisConnectionsPerProcess = 2

// Every instance of either app runs one handler process.
var maxInstances = apiMaxInstances + listenerInstances
var redisConnections = redisConnectionsPerProcess * maxInstances
var redisMaxClients = empty(existingRedisHost) ? redisConnectionLimits[redisSku] : existingRedisMaxClients

// The end of every name holds the check: fail() stops the evaluation of whatever needs it, so that a set-up whose
// instances need more connections than Redis allows creates nothing at all.
var suffix = redisConnections <= redisMaxClients
  ? take(uniqueString(resourceGroup().id), 6)
  : fail('The connection budget does not fit: ${maxInstances} instances x ${redisConnectionsPerProcess} connections = ${redisConnections}, but this Redis allows ${redisMaxClients}. Lower apiMaxInstances or take a larger Redis.')

// ---- which functions run where ---------------------------------------------------------------------------------

// Functions of the API app. The listener app disables them.
var apiFunctions = [
  'ConnectivityWorker'
  'DeadLetters'
  'EndSession'
  'Event'
  'Heartbeat'
  'HeartbeatMessages'
  'Heartbeats'
  'Leave'
  'Leaves'
  'OpenApi'
  'Replay'
  'User'
  'UserEvents'
  'UsersQuery'
]

// Functions of the listener app. The API app disables them. Live, Health and Metrics run in both.
var listenerFunctions = [
  'ExpirationListener'
]

var apiDisabled = toObject(listenerFunctions, name => 'AzureWebJobs_${name}_Disabled', name => 'true')
var listenerDisabled = toObject(apiFunctions, name => 'AzureWebJobs_${name}_Disabled', name => 'true')

// ---- names of the resources -------------------------------------------------------------------------------------

var prefix = toLower(namePrefix)
var apiName = '${prefix}-api-${suffix}'
var listenerName = '${prefix}-listener-${suffix}'
var storageName = 'st${prefix}${suffix}'

// Deliveries of a message before the broker gives up on it. The handler must know the same number: at the last
// delivery it moves the message to <queue>-rejected itself.
var maxDeliveryCount = 10

// ---- resources ---------------------------------------------------------------------------------------------------

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: '${prefix}-id-${suffix}'
  location: location
  tags: tags
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  params: {
    name: '${prefix}-logs-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    retentionDays: logRetentionDays
    dailyQuotaGb: logDailyQuotaGb
  }
}

module storage 'modules/storage.bicep' = {
  name: 'storage'
  params: {
    name: storageName
    location: location
    tags: tags
    principalId: identity.properties.principalId
    sharedKeys: storageAuth == 'keys'
    zoneRedundant: zoneRedundant
    shares: storageAuth == 'keys' ? [apiName, listenerName] : []
    publisherPrincipalId: publisherPrincipalId
    publisherPrincipalType: publisherPrincipalType
  }
}

module serviceBus 'modules/servicebus.bicep' = {
  name: 'servicebus'
  params: {
    name: '${prefix}-bus-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    workspaceId: monitoring.outputs.workspaceId
    sku: serviceBusSku
    capacity: serviceBusCapacity
    maxDeliveryCount: maxDeliveryCount
    eventsTopic: eventsTopic
    expirationQueues: expirationQueues
  }
}

module cosmos 'modules/cosmos.bicep' = {
  name: 'cosmos'
  params: {
    name: '${prefix}-cosmos-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    workspaceId: monitoring.outputs.workspaceId
    serverless: cosmosThroughput == 'serverless'
    maxRu: cosmosMaxRu
    zoneRedundant: zoneRedundant
    eventRetentionDays: eventRetentionDays
  }
}

module redis 'modules/redis.bicep' = if (empty(existingRedisHost)) {
  name: 'redis'
  params: {
    name: '${prefix}-redis-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    workspaceId: monitoring.outputs.workspaceId
    sku: redisSku
    persistence: redisPersistence
  }
}

// Instances belong to the plan and are shared by its apps, so its own minimum is that of the hungrier app.
module plan 'modules/plan.bicep' = {
  name: 'plan'
  params: {
    name: '${prefix}-plan-${suffix}'
    location: location
    tags: tags
    sku: planSku
    minInstances: listenerOwnPlan || apiMinInstances >= listenerInstances ? apiMinInstances : listenerInstances
    maxInstances: apiMaxInstances >= listenerInstances ? apiMaxInstances : listenerInstances
    zoneRedundant: zoneRedundant
  }
}

// The listener needs little: EP1 whatever the API app runs on.
module listenerPlan 'modules/plan.bicep' = if (listenerOwnPlan) {
  name: 'listener-plan'
  params: {
    name: '${prefix}-listener-plan-${suffix}'
    location: location
    tags: tags
    sku: 'EP1'
    minInstances: listenerInstances
    maxInstances: listenerInstances
    zoneRedundant: zoneRedundant && listenerInstances > 1
  }
}

// What both apps are told. README.md has the table of all settings.
var commonSettings = {
  AZURE_CLIENT_ID: identity.properties.clientId
  REDIS_HOST: empty(existingRedisHost) ? redis!.outputs.host : existingRedisHost
  REDIS_MAX_CLIENTS: string(redisMaxClients)
  MAX_INSTANCES: string(maxInstances)
  ServiceBusConnection__fullyQualifiedNamespace: serviceBus.outputs.host
  ServiceBusConnection__credential: 'managedidentity'
  ServiceBusConnection__clientId: identity.properties.clientId
  EVENTS_QUEUE: empty(eventsTopic) ? 'connectivity-events' : eventsTopic
  MAX_DELIVERY_COUNT: string(maxDeliveryCount)
  COSMOS_ENDPOINT: cosmos.outputs.endpoint
  COSMOS_DATABASE: cosmos.outputs.database
  SESSION_TTL_SECONDS: string(sessionTtlSeconds)
}
var redisKeySetting = empty(existingRedisAccessKey) ? {} : { REDIS_ACCESS_KEY: existingRedisAccessKey }
var routesSetting = empty(expirationRoutes) ? {} : { EXPIRATION_ROUTES: expirationRoutes }

module api 'modules/functionapp.bicep' = {
  name: 'api'
  params: {
    name: apiName
    role: 'api'
    location: location
    tags: tags
    planId: plan.outputs.id
    identityId: identity.id
    identityClientId: identity.properties.clientId
    storageName: storage.outputs.name
    sharedKeys: storageAuth == 'keys'
    insightsName: monitoring.outputs.insightsName
    packageUrl: apiPackageUrl
    previousPackageUrl: apiPreviousPackageUrl
    minInstances: apiMinInstances
    maxInstances: apiMaxInstances
    corsOrigins: corsOrigins
    settings: union(commonSettings, redisKeySetting, routesSetting, apiDisabled)
  }
}

module listener 'modules/functionapp.bicep' = {
  name: 'listener'
  params: {
    name: listenerName
    role: 'listener'
    location: location
    tags: tags
    planId: listenerOwnPlan ? listenerPlan!.outputs.id : plan.outputs.id
    identityId: identity.id
    identityClientId: identity.properties.clientId
    storageName: storage.outputs.name
    sharedKeys: storageAuth == 'keys'
    insightsName: monitoring.outputs.insightsName
    packageUrl: listenerPackageUrl
    previousPackageUrl: listenerPreviousPackageUrl
    minInstances: listenerInstances
    maxInstances: listenerInstances
    corsOrigins: []
    settings: union(commonSettings, redisKeySetting, routesSetting, listenerDisabled)
  }
}

module alerts 'modules/alerts.bicep' = {
  name: 'alerts'
  params: {
    prefix: prefix
    location: location
    tags: tags
    email: alertEmail
    workspaceId: monitoring.outputs.workspaceId
    listenerName: listenerName
    listenerId: listener.outputs.id
    serviceBusId: serviceBus.outputs.id
    cosmosId: cosmos.outputs.id
    redisId: empty(existingRedisHost) ? redis!.outputs.id : existingRedisId
    watchRedis: empty(existingRedisHost) || !empty(existingRedisId)
    redisMaxClients: redisMaxClients
  }
}

// ---- outputs: names and numbers, never a secret --------------------------------------------------------------------

output apiApp string = apiName
output apiHost string = api.outputs.host
output listenerApp string = listenerName
output storageAccount string = storage.outputs.name
output identityName string = identity.name
output identityPrincipalId string = identity.properties.principalId
output redisHost string = commonSettings.REDIS_HOST
output redisConnections int = redisConnections
output redisMaxClients int = redisMaxClients

@description('Old and new processes run side by side for a while when a package is published.')
output redisConnectionsWhilePublishing int = 2 * redisConnections
output publishingFitsRedis bool = 2 * redisConnections <= redisMaxClients
