// The Cosmos DB account: event log, users, profiles. Keys are off.

param name string
param location string
param tags object

@description('Principal of the apps.')
param principalId string

@description('Resource id of the identity that has that principal. Names are made of it, because it is known before the deployment.')
param identityId string
param workspaceId string

@description('Answers on the internet. Otherwise only through its private endpoint.')
param publicAccess bool

@description('Bills each request instead of reserved throughput.')
param serverless bool

@description('Most RU/s of events and of users, with autoscale.')
param maxRu int
param zoneRedundant bool
param eventRetentionDays int

var databaseName = 'connectivity'

// Reads and writes documents. It may not make or drop containers, nor change their throughput.
var dataContributor = '00000000-0000-0000-0000-000000000002'

// defaultTtl in seconds; -1: a document lives for ever unless it names its own. indexed: the paths that queries
// filter or sort by, the partition key among them: it has no index of its own when everything else is excluded.
// Each indexed path makes every write dearer; a document that is read by its id needs none.
var containers = [
  {
    name: 'events'
    partitionKey: '/pk'
    defaultTtl: eventRetentionDays * 86400
    indexed: ['/pk/?', '/user/?', '/epoch/?']
    maxRu: maxRu
  }
  {
    name: 'users'
    partitionKey: '/id'
    defaultTtl: -1
    indexed: []
    maxRu: maxRu
  }
  {
    name: 'profiles'
    partitionKey: '/id'
    defaultTtl: -1
    indexed: []
    maxRu: 1000
  }
]

resource account 'Microsoft.DocumentDB/databaseAccounts@2026-03-15' = {
  name: name
  location: location
  tags: tags
  kind: 'GlobalDocumentDB'
  properties: {
    databaseAccountOfferType: 'Standard'
    locations: [
      {
        locationName: location
        failoverPriority: 0
        isZoneRedundant: zoneRedundant
      }
    ]
    consistencyPolicy: {
      defaultConsistencyLevel: 'Session'
    }
    capabilities: serverless ? [{ name: 'EnableServerless' }] : []
    backupPolicy: {
      type: 'Continuous'
      continuousModeProperties: {
        tier: 'Continuous7Days'
      }
    }
    disableLocalAuth: true
    disableKeyBasedMetadataWriteAccess: true
    minimalTlsVersion: 'Tls12'
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
  }
}

resource database 'Microsoft.DocumentDB/databaseAccounts/sqlDatabases@2026-03-15' = {
  parent: account
  name: databaseName
  properties: {
    resource: {
      id: databaseName
    }
  }
}

resource container 'Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers@2026-03-15' = [for c in containers: {
  parent: database
  name: c.name
  properties: {
    resource: {
      id: c.name
      partitionKey: {
        paths: [c.partitionKey]
        kind: 'Hash'
        version: 2
      }
      defaultTtl: c.defaultTtl
      indexingPolicy: {
        automatic: true
        indexingMode: 'consistent'
        includedPaths: map(c.indexed, indexedPath => { path: indexedPath })
        excludedPaths: [{ path: '/*' }]
      }
    }
    options: serverless ? {} : {
      autoscaleSettings: {
        maxThroughput: c.maxRu
      }
    }
  }
}]

// Scope is the account: the client reads its regions before anything else. It holds nothing but this database.
resource access 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2026-03-15' = {
  parent: account
  name: guid(account.id, identityId, dataContributor)
  properties: {
    principalId: principalId
    roleDefinitionId: '${account.id}/sqlRoleDefinitions/${dataContributor}'
    scope: account.id
  }
}

resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: account
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'ControlPlaneRequests'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'Requests'
        enabled: true
      }
    ]
  }
}

output id string = account.id
output endpoint string = account.properties.documentEndpoint
output database string = database.name
