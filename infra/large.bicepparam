// Many users, and a listener that outlives the loss of a zone: a plan of its own with a hot standby.
using './main.bicep'

// none, or the URLs that the apps have now: infra/publish/provision.sh sets the variables. They have no default,
// so that a deployment which forgets them is refused instead of removing the code.
param apiPackageUrl = readEnvironmentVariable('API_PACKAGE_URL')
param apiPreviousPackageUrl = readEnvironmentVariable('API_PREVIOUS_PACKAGE_URL')
param listenerPackageUrl = readEnvironmentVariable('LISTENER_PACKAGE_URL')
param listenerPreviousPackageUrl = readEnvironmentVariable('LISTENER_PREVIOUS_PACKAGE_URL')

// Everything else is written here and not taken from the environment, so that the next deployment is the same one.
param namePrefix = 'presence'

// identity or keys: docs/deploy.md says what follows from each.
param storageAuth = 'identity'

// Who publishes: az ad signed-in-user show --query id
param publisherPrincipalId = ''
param publisherPrincipalType = 'User'

// Who hears the alerts.
param alertEmail = ''

param planSku = 'EP1'
param apiMinInstances = 2
param apiMaxInstances = 20
param listenerOwnPlan = true
param listenerInstances = 2
param zoneRedundant = true

param redisSku = 'Balanced_B10'
param redisPersistence = true

// Your own Redis instead of a new one. Its key, if it needs one, comes from the environment or from a Key Vault:
// param existingRedisAccessKey = readEnvironmentVariable('EXISTING_REDIS_ACCESS_KEY')
param existingRedisHost = ''
param existingRedisId = ''
param existingRedisMaxClients = 250

param serviceBusSku = 'Premium'
param serviceBusCapacity = 1
param eventsTopic = ''

param cosmosThroughput = 'autoscale'
param cosmosMaxRu = 10000
param eventRetentionDays = 30

param logRetentionDays = 30
param logDailyQuotaGb = 10
