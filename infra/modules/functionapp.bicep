// One function app on a Linux Elastic Premium plan, run by a custom handler from a package.

param name string

@description('What the app does: api or listener. A tag says so, and publish/provision.sh finds the app by it.')
@allowed(['api', 'listener'])
param role string
param location string
param tags object
param planId string
param identityId string
param identityClientId string
param storageName string

@description('Storage by connection string and Azure Files instead of by identity.')
param sharedKeys bool
param insightsName string

@description('Package to run; none before the first publish.')
@secure()
param packageUrl string

@description('Package that ran before; none when there was none.')
@secure()
param previousPackageUrl string

@description('Instances that are always ready.')
param minInstances int

@description('Most instances.')
param maxInstances int
param corsOrigins array

@description('Subnet that the app calls out of, in a private set-up. Empty: none.')
param subnetId string

@description('Answers on the internet. Otherwise only through its private endpoint.')
param publicAccess bool

@description('Settings of the handler, by name.')
@secure()
param settings object

resource storage 'Microsoft.Storage/storageAccounts@2026-09-01' existing = {
  name: storageName
}

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insightsName
}

// linuxFxVersion stays empty: that is what a custom handler runs on.
var hostSettings = {
  FUNCTIONS_EXTENSION_VERSION: '~4'
  FUNCTIONS_WORKER_RUNTIME: 'custom'
  // Without it the host id is the first 32 characters of the name, and two apps that share them stop each other.
  AzureFunctionsWebHost__hostid: name
  APPLICATIONINSIGHTS_CONNECTION_STRING: insights.properties.ConnectionString
  APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${identityClientId};Authorization=AAD'
}

// The platform fetches the package with the identity. The blob is private and the URL holds no secret.
var identityStorage = {
  AzureWebJobsStorage__accountName: storageName
  AzureWebJobsStorage__credential: 'managedidentity'
  AzureWebJobsStorage__clientId: identityClientId
  WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID: identityId
}

// Azure Functions Core Tools upload with this connection string and put a signed URL into WEBSITE_RUN_FROM_PACKAGE.
var storageConnection = 'DefaultEndpointsProtocol=https;AccountName=${storageName};EndpointSuffix=${environment().suffixes.storage};AccountKey=${storage.listKeys().keys[0].value}'
var keyStorage = {
  AzureWebJobsStorage: storageConnection
  WEBSITE_CONTENTAZUREFILECONNECTIONSTRING: storageConnection
  WEBSITE_CONTENTSHARE: name
}

var packageSetting = packageUrl == 'none' ? {} : { WEBSITE_RUN_FROM_PACKAGE: packageUrl }
var previousPackageSetting = previousPackageUrl == 'none' ? {} : { PREVIOUS_PACKAGE_URL: previousPackageUrl }
var allSettings = union(settings, hostSettings, sharedKeys ? keyStorage : identityStorage, packageSetting, previousPackageSetting)

resource app 'Microsoft.Web/sites@2025-03-01' = {
  name: name
  location: location
  tags: union(tags, { userconnectivity: role })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: {
      '${identityId}': {}
    }
  }
  properties: {
    serverFarmId: planId
    reserved: true
    httpsOnly: true
    clientAffinityEnabled: false
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
    // A setting may be a reference to a Key Vault; this identity reads it.
    keyVaultReferenceIdentity: identityId
    siteConfig: {
      linuxFxVersion: ''
      minimumElasticInstanceCount: minInstances
      preWarmedInstanceCount: 1
      functionAppScaleLimit: maxInstances
      // The scale controller is outside of the network and cannot look into queues there; the host does it then.
      functionsRuntimeScaleMonitoringEnabled: !empty(subnetId)
      // Anonymous. It answers 503 only where the loop of the listener does not turn, never because Redis or another part is
      // away: that would replace every instance in an outage.
      healthCheckPath: '/api/live'
      http20Enabled: true
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
      ftpsState: 'Disabled'
      cors: {
        allowedOrigins: corsOrigins
      }
      appSettings: map(items(allSettings), setting => {
        name: setting.key
        value: setting.value
      })
    }
  }
}

// Nobody publishes with a password.
resource ftp 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'ftp'
  properties: {
    allow: false
  }
}

resource scm 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2025-03-01' = {
  parent: app
  name: 'scm'
  properties: {
    allow: false
  }
}

output id string = app.id
output host string = app.properties.defaultHostName
