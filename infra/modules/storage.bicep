// The storage account of the Functions host, and the packages.
//
// identity (default): no shared keys at all. keys: a connection string, and a file share for each app.

param name string
param location string
param tags object

@description('Principal of the apps.')
param principalId string

@description('Resource id of the identity that has that principal. Names are made of it, because it is known before the deployment.')
param identityId string

@description('Allows access by key, which Azure Files and Azure Functions Core Tools need.')
param sharedKeys bool
param zoneRedundant bool

@description('Answers on the internet. Otherwise only through its private endpoint.')
param publicAccess bool

@description('File shares to create, one for each app.')
param shares array

@description('Who may upload packages. Empty: nobody is granted it here.')
param publisherPrincipalId string
param publisherPrincipalType string

// The host keeps its locks and function keys in blobs. Owner is what its documentation asks for.
var storageBlobDataOwner = 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
// The host writes its diagnostic events to a table.
var storageTableDataContributor = '0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3'
var storageBlobDataContributor = 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'

var hostRoles = [
  storageBlobDataOwner
  storageTableDataContributor
]

resource account 'Microsoft.Storage/storageAccounts@2026-09-01' = {
  name: name
  location: location
  tags: tags
  kind: 'StorageV2'
  sku: {
    name: zoneRedundant ? 'Standard_ZRS' : 'Standard_LRS'
  }
  properties: {
    allowSharedKeyAccess: sharedKeys
    defaultToOAuthAuthentication: true
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2026-09-01' = {
  parent: account
  name: 'default'
}

// One blob per package, named by its hash: the previous one stays for the way back.
resource packages 'Microsoft.Storage/storageAccounts/blobServices/containers@2026-09-01' = {
  parent: blobs
  name: 'packages'
  properties: {
    publicAccess: 'None'
  }
}

resource files 'Microsoft.Storage/storageAccounts/fileServices@2026-09-01' = if (sharedKeys) {
  parent: account
  name: 'default'
}

resource share 'Microsoft.Storage/storageAccounts/fileServices/shares@2026-09-01' = [for shareName in shares: {
  parent: files
  name: shareName
}]

resource hostRole 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for role in hostRoles: {
  name: guid(account.id, identityId, role)
  scope: account
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role)
  }
}]

resource publisherRole 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(publisherPrincipalId)) {
  name: guid(packages.id, publisherPrincipalId, storageBlobDataContributor)
  scope: packages
  properties: {
    principalId: publisherPrincipalId
    principalType: publisherPrincipalType
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', storageBlobDataContributor)
  }
}

output id string = account.id
output name string = account.name
