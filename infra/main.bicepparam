// The set-up of azd up: as small.bicepparam, with the values that azd knows. azd env set NAME VALUE sets the others.
using './main.bicep'

// none, or the URLs that the apps have now: infra/publish/azd.sh sets the variables. They have no default,
// so that a deployment which forgets them is refused instead of removing the code.
param apiPackageUrl = readEnvironmentVariable('API_PACKAGE_URL')
param apiPreviousPackageUrl = readEnvironmentVariable('API_PREVIOUS_PACKAGE_URL')
param listenerPackageUrl = readEnvironmentVariable('LISTENER_PACKAGE_URL')
param listenerPreviousPackageUrl = readEnvironmentVariable('LISTENER_PREVIOUS_PACKAGE_URL')

param namePrefix = readEnvironmentVariable('NAME_PREFIX', 'presence')
param location = readEnvironmentVariable('AZURE_LOCATION')

// azd would keep the signed URLs of the other kind in a file.
param storageAuth = 'identity'

// Who runs azd publishes.
param publisherPrincipalId = readEnvironmentVariable('AZURE_PRINCIPAL_ID', '')
param publisherPrincipalType = readEnvironmentVariable('AZURE_PRINCIPAL_TYPE', 'User')

// Who hears the alerts.
param alertEmail = readEnvironmentVariable('ALERT_EMAIL', '')

// Everything else is written here and not taken from the environment, so that the next deployment is the same one.

param planSku = 'EP1'
param apiMinInstances = 1
param apiMaxInstances = 5
param listenerOwnPlan = false
param listenerInstances = 1
param zoneRedundant = false

param redisSku = 'Balanced_B1'
param redisPersistence = false

param serviceBusSku = 'Standard'
param eventsTopic = ''

param cosmosThroughput = 'serverless'
param eventRetentionDays = 30

param logRetentionDays = 30
param logDailyQuotaGb = 1
