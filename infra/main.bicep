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

@description('Start of every name: 3 to 11 lower-case letters and digits, a letter first. No dash: the storage account takes none.')
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

@description('Instances of the API app that are always ready. Not more than apiMaxInstances.')
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

@description('Spreads the instances of a plan over zones, and the data of storage and Cosmos DB. Needs two always-ready instances and a region with zones. A storage or Cosmos DB account that exists does not change with it: docs/deploy.md.')
param zoneRedundant bool = false

@description('Origins of browsers that may call the API. A request from any other never reaches the handler.')
param corsOrigins array = []

@description('Seconds that a session lives after a heartbeat which names no ttl.')
@minValue(5)
@maxValue(3600)
param sessionTtlSeconds int = 45

// ---- Redis ---------------------------------------------------------------------------------------------------

@description('Size of the Azure Managed Redis that is created. Only sizes up to 25 GB: above that there is no unsharded database. An unsharded one keeps its size: for another, count up redisNumber (docs/deploy.md).')
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

@description('Counts up when a new Managed Redis takes the place of the one before: docs/deploy.md.')
@minValue(1)
@maxValue(99)
param redisNumber int = 1

@description('Writes every second to an append-only file, so that Redis keeps its data when both nodes are lost.')
param redisPersistence bool = false

@description('host or host:port, over TLS, of a Redis that exists already. Empty: a new Azure Managed Redis is created.')
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

@description('Standard passes 1,000 operations a second, about 400 events. Premium is for more. A namespace that exists keeps its tier: for the other, count up serviceBusNumber (docs/deploy.md).')
@allowed(['Standard', 'Premium'])
param serviceBusSku string = 'Standard'

@description('Messaging units of Premium.')
@allowed([1, 2, 4, 8, 16])
param serviceBusCapacity int = 1

@description('Counts up when a new namespace takes the place of the one before: docs/deploy.md.')
@minValue(1)
@maxValue(99)
param serviceBusNumber int = 1

@description('Lets the apps scale by the length of the queues, up to four instances at a time. It gives them Azure Service Bus Data Owner on the queues that they read. Without it they scale one by one while messages come in.')
param scaleByQueueLength bool = false

@description('Name of a topic that receives the events and forwards them to the worker queue, so that others can subscribe too. Empty: events go straight to the queue.')
param eventsTopic string = ''

@description('The setting EXPIRATION_ROUTES: key patterns and the queues that their expiries go to, as cart:*=carts;lock:??=locks. Empty: none.')
param expirationRoutes string = ''

@description('Names of the queues in expirationRoutes, all of them. They are created.')
param expirationQueues array = []

// ---- Cosmos DB -----------------------------------------------------------------------------------------------

@description('serverless bills each request. autoscale reserves throughput, for a steady load. An account that exists does not change with it: docs/deploy.md.')
@allowed(['serverless', 'autoscale'])
param cosmosThroughput string = 'serverless'

@description('Most RU/s of the containers events and users, each, with autoscale: a multiple of 1,000. The least is a tenth of it.')
@minValue(1000)
@maxValue(1000000)
param cosmosMaxRu int = 1000

@description('Counts up when a new account takes the place of the one before: docs/deploy.md.')
@minValue(1)
@maxValue(99)
param cosmosNumber int = 1

@description('Days that an event stays in the log.')
@minValue(1)
@maxValue(3650)
param eventRetentionDays int = 30

// ---- network -------------------------------------------------------------------------------------------------

@description('Closes storage, Service Bus, Cosmos DB and Managed Redis to the internet: the apps reach them through private endpoints in a network of their own. Needs serviceBusSku Premium and storageAuth identity; publishing then runs inside the network.')
param privateNetwork bool = false

@description('Closes the apps, too: clients, monitors and publishing must be inside the network. Needs privateNetwork.')
param privateApps bool = false

@description('Addresses of the network, in a private range, /16 to /22.')
param networkAddressPrefix string = '10.90.0.0/16'

// ---- monitoring ----------------------------------------------------------------------------------------------

@description('Address that alerts are sent to. Empty: alerts show in the portal only.')
param alertEmail string = ''

@description('Days that logs are kept.')
@minValue(30)
@maxValue(730)
param logRetentionDays int = 30

@description('GB of logs that are taken in a day at most, 1 or more. -1: no limit.')
@minValue(-1)
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

// ---- what is refused -------------------------------------------------------------------------------------------

var letters = 'abcdefghijklmnopqrstuvwxyz'
var digits = '0123456789'
var foreignToNames = filter(map(range(0, length(prefix)), i => substring(prefix, i, 1)), c => !contains('${letters}${digits}', c))

var ownQueueNames = ['connectivity-events', 'connectivity-events-rejected', 'heartbeats', 'heartbeats-rejected']
var routedQueues = empty(expirationRoutes) ? [] : map(filter(split(expirationRoutes, ';'), route => !empty(trim(route))), route => trim(last(split(route, '='))))

// Instances that the plan of the listener and that of the API app keep ready.
var listenerPlanInstances = listenerOwnPlan ? listenerInstances : max(apiMinInstances, listenerInstances)
var apiPlanInstances = listenerOwnPlan ? apiMinInstances : listenerPlanInstances

// Whatever Azure would refuse only after it has created the half of it, and what would not work.
var refusals = filter([
  redisConnections <= redisMaxClients ? '' : 'The connection budget does not fit: ${maxInstances} instances x ${redisConnectionsPerProcess} connections = ${redisConnections}, but this Redis allows ${redisMaxClients}. Lower apiMaxInstances or take a larger Redis.'
  empty(foreignToNames) && contains(letters, take(prefix, 1)) ? '' : 'namePrefix is \'${namePrefix}\': it takes letters and digits only, a letter first, for example presence2.'
  apiMinInstances <= apiMaxInstances ? '' : 'apiMinInstances (${apiMinInstances}) is above apiMaxInstances (${apiMaxInstances}).'
  !zoneRedundant || apiPlanInstances > 1 ? '' : 'zoneRedundant needs two always-ready instances: set apiMinInstances to 2 or more.'
  cosmosMaxRu % 1000 == 0 ? '' : 'cosmosMaxRu is ${cosmosMaxRu}: autoscale takes multiples of 1000, for example ${(cosmosMaxRu / 1000 + 1) * 1000}.'
  logDailyQuotaGb != 0 ? '' : 'logDailyQuotaGb is 0: no log would be taken. Set 1 or more, or -1 for no limit.'
  empty(existingRedisHost) || !contains(existingRedisHost, ',') && !contains(existingRedisHost, '/') && !contains(existingRedisHost, '@') ? '' : 'existingRedisHost is no host:port. It takes no connection string and no URL; the key goes into existingRedisAccessKey.'
  !empty(existingRedisHost) || empty(existingRedisId) ? '' : 'existingRedisId needs existingRedisHost.'
  empty(existingRedisId) || startsWith(existingRedisId, '/subscriptions/') ? '' : 'existingRedisId is no resource id. Print it: az resource list --query "[].id".'
  empty(eventsTopic) || !contains(concat(ownQueueNames, expirationQueues), eventsTopic) ? '' : 'eventsTopic is ${eventsTopic}, which is the name of a queue. Choose another, for example presence-events.'
  empty(filter(expirationQueues, queueName => contains(ownQueueNames, queueName))) ? '' : 'expirationQueues names a queue of this product: ${join(ownQueueNames, ', ')} are taken.'
  empty(filter(routedQueues, queueName => !contains(expirationQueues, queueName))) ? '' : 'expirationRoutes sends to queues that expirationQueues does not name: ${join(filter(routedQueues, queueName => !contains(expirationQueues, queueName)), ', ')}.'
  !privateNetwork || serviceBusSku == 'Premium' ? '' : 'privateNetwork needs serviceBusSku Premium: a Standard namespace has no private endpoints.'
  !privateNetwork || storageAuth == 'identity' ? '' : 'privateNetwork needs storageAuth identity.'
  !privateApps || privateNetwork ? '' : 'privateApps needs privateNetwork.'
  contains(['16', '17', '18', '19', '20', '21', '22'], last(split(networkAddressPrefix, '/'))) ? '' : 'networkAddressPrefix is ${networkAddressPrefix}: it takes a range from /16 to /22, for example 10.90.0.0/16.'
  empty(alertEmail) || contains(alertEmail, '@') ? '' : 'alertEmail is no address.'
  empty(publisherPrincipalId) || length(publisherPrincipalId) == 36 ? '' : 'publisherPrincipalId is no object id. Print yours: az ad signed-in-user show --query id.'
  empty(filter(corsOrigins, origin => origin != '*' && (!startsWith(origin, 'http') || endsWith(origin, '/')))) ? '' : 'corsOrigins takes origins as https://app.example.com, without a slash at the end.'
], refusal => !empty(refusal))

// The end of every name holds the check: fail() stops the evaluation of whatever needs it, so that a set-up that cannot
// work creates nothing at all.
var suffix = empty(refusals) ? take(uniqueString(resourceGroup().id), 6) : fail(join(refusals, ' '))

// ---- which functions run where ---------------------------------------------------------------------------------

// Functions of the API app. The listener app disables them.
var apiFunctions = [
  'ConnectivityWorker'
  'DeadLetters'
  'EndSession'
  'Event'
  'Heartbeat'
  'HeartbeatDeadLetters'
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

// Deliveries of a message before the broker gives up on it. The handler must know the same number. While a part is away
// that a batch needs, the batch waits up to half its lock, 150 s, before it goes back: 600 x 150 s = 25 hours.
var maxDeliveryCount = 600

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
    identityId: identity.id
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
    identityId: identity.id
    publicAccess: !privateNetwork
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
    name: '${prefix}-bus${serviceBusNumber > 1 ? string(serviceBusNumber) : ''}-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    identityId: identity.id
    workspaceId: monitoring.outputs.workspaceId
    publicAccess: !privateNetwork
    sku: serviceBusSku
    capacity: serviceBusCapacity
    maxDeliveryCount: maxDeliveryCount
    scaleByQueueLength: scaleByQueueLength
    eventsTopic: eventsTopic
    expirationQueues: expirationQueues
  }
}

module cosmos 'modules/cosmos.bicep' = {
  name: 'cosmos'
  params: {
    name: '${prefix}-cosmos${cosmosNumber > 1 ? string(cosmosNumber) : ''}-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    identityId: identity.id
    workspaceId: monitoring.outputs.workspaceId
    publicAccess: !privateNetwork
    serverless: cosmosThroughput == 'serverless'
    maxRu: cosmosMaxRu
    zoneRedundant: zoneRedundant
    eventRetentionDays: eventRetentionDays
  }
}

module redis 'modules/redis.bicep' = if (empty(existingRedisHost)) {
  name: 'redis'
  params: {
    name: '${prefix}-redis${redisNumber > 1 ? string(redisNumber) : ''}-${suffix}'
    location: location
    tags: tags
    principalId: identity.properties.principalId
    workspaceId: monitoring.outputs.workspaceId
    publicAccess: !privateNetwork
    sku: redisSku
    persistence: redisPersistence
  }
}

module network 'modules/network.bicep' = if (privateNetwork) {
  name: 'network'
  params: {
    name: '${prefix}-network-${suffix}'
    location: location
    tags: tags
    addressPrefix: networkAddressPrefix
  }
}

// What the apps call. The apps start after these: a host that does not reach its storage account does not listen.
module endpoints 'modules/endpoints.bicep' = if (privateNetwork) {
  name: 'endpoints'
  params: {
    prefix: prefix
    suffix: suffix
    location: location
    tags: tags
    networkId: network!.outputs.id
    subnetId: network!.outputs.endpointsSubnetId
    services: [
      { name: 'blob', group: 'blob', zone: 'privatelink.blob.${environment().suffixes.storage}' }
      { name: 'table', group: 'table', zone: 'privatelink.table.${environment().suffixes.storage}' }
      { name: 'bus', group: 'namespace', zone: 'privatelink.servicebus.windows.net' }
      { name: 'cosmos', group: 'Sql', zone: 'privatelink.documents.azure.com' }
      ...(empty(existingRedisHost) ? [{ name: 'redis', group: 'redisEnterprise', zone: 'privatelink.redis.azure.net' }] : [])
    ]
    ids: [
      storage.outputs.id
      storage.outputs.id
      serviceBus.outputs.id
      cosmos.outputs.id
      ...(empty(existingRedisHost) ? [redis!.outputs.id] : [])
    ]
  }
}

module appEndpoints 'modules/endpoints.bicep' = if (privateApps) {
  name: 'app-endpoints'
  params: {
    prefix: prefix
    suffix: suffix
    location: location
    tags: tags
    networkId: network!.outputs.id
    subnetId: network!.outputs.endpointsSubnetId
    services: [
      { name: 'api', group: 'sites', zone: 'privatelink.azurewebsites.net' }
      { name: 'listener', group: 'sites', zone: 'privatelink.azurewebsites.net' }
    ]
    ids: [
      api.outputs.id
      listener.outputs.id
    ]
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
    minInstances: apiPlanInstances
    maxInstances: listenerOwnPlan ? apiMaxInstances : max(apiMaxInstances, listenerInstances)
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
// Inside a network the host asks for the length of the queues, if it may.
var scalingSetting = privateNetwork && scaleByQueueLength ? { TARGET_BASED_SCALING_ENABLED: '1' } : {}
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
    subnetId: privateNetwork ? network!.outputs.apiSubnetId : ''
    publicAccess: !privateApps
    settings: union(commonSettings, redisKeySetting, routesSetting, scalingSetting, apiDisabled)
  }
  dependsOn: [endpoints]
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
    subnetId: !privateNetwork ? '' : listenerOwnPlan ? network!.outputs.listenerSubnetId : network!.outputs.apiSubnetId
    publicAccess: !privateApps
    settings: union(commonSettings, redisKeySetting, routesSetting, scalingSetting, listenerDisabled)
  }
  dependsOn: [endpoints]
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
