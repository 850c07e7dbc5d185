// Azure Managed Redis with one database.

param name string
param location string
param tags object

@description('Principal of the apps.')
param principalId string
param workspaceId string

@description('Answers on the internet. Otherwise only through its private endpoint.')
param publicAccess bool
param sku string

@description('Append-only file, written every second.')
param persistence bool

var port = 10000

resource cluster 'Microsoft.Cache/redisEnterprise@2026-09-01' = {
  name: name
  location: location
  tags: tags
  sku: {
    name: sku
  }
  properties: {
    minimumTlsVersion: '1.2'
    highAvailability: 'Enabled'
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
  }
}

resource database 'Microsoft.Cache/redisEnterprise/databases@2026-09-01' = {
  parent: cluster
  name: 'default'
  properties: {
    clientProtocol: 'Encrypted'
    port: port
    // One shard: a subscriber on one shard of several would see a share of the expired events only.
    clusteringPolicy: 'NoCluster'
    // With the platform's default, keys with a ttl are dropped when memory is full, and sessions with them.
    evictionPolicy: 'NoEviction'
    // Only this property outlives a restart of the nodes; CONFIG SET does not.
    notifyKeyspaceEvents: 'Ex'
    accessKeysAuthentication: 'Disabled'
    persistence: {
      aofEnabled: persistence
      aofFrequency: persistence ? '1s' : null
    }
  }
}

// There is one assignment for a principal and a database. Its name takes no dashes. The policy "default" is the one that
// the service offers: all data commands, all keys, all channels.
resource access 'Microsoft.Cache/redisEnterprise/databases/accessPolicyAssignments@2026-09-01' = {
  parent: database
  name: 'functionapps'
  properties: {
    accessPolicyName: 'default'
    user: {
      objectId: principalId
    }
  }
}

// Who connects, authenticates and leaves.
resource connections 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: database
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'ConnectionEvents'
        enabled: true
      }
    ]
  }
}

resource metrics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: cluster
  properties: {
    workspaceId: workspaceId
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

output id string = cluster.id
output host string = '${cluster.properties.hostName}:${port}'
