// The Service Bus namespace with its queues. Keys are off: the apps send and receive with their identity.

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

@allowed(['Standard', 'Premium'])
param sku string
param capacity int

@description('Max delivery count of the queues that the apps read.')
param maxDeliveryCount int

@description('Lets the scale controller read how long the queues are, which needs Azure Service Bus Data Owner on them.')
param scaleByQueueLength bool

@description('Topic that receives the events and forwards them to connectivity-events. Empty: none.')
param eventsTopic string

@description('Names of further queues, for foreign keys that expire.')
param expirationQueues array

var serviceBusDataReceiver = '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
var serviceBusDataSender = '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'
var serviceBusDataOwner = '090c5cfd-751d-490a-894a-3ce6f1109419'

// Copies of an event have the same MessageId, so the broker drops what is sent twice within this time.
var duplicateWindow = 'PT10M'

// A batch gets no lock renewal. 5 minutes is the most there is; the handler gives itself half of it.
var lockDuration = 'PT5M'

// No queue has sessions: with a batch trigger a session queue serves one user at a time. Order comes from the epoch.
var ownQueues = [
  {
    name: 'connectivity-events'
    receive: true
    send: true
    duplicateDetection: true
    timeToLive: 'P14D'
    deadLetterOnExpiry: true
  }
  {
    name: 'connectivity-events-rejected'
    receive: false
    send: true
    duplicateDetection: true
    timeToLive: 'P90D'
    deadLetterOnExpiry: false
  }
  // A heartbeat older than the largest ttl + grace (70 minutes) is stale, so it may go. No duplicate detection: a
  // client that uses the same MessageId for every beat would be dropped and go offline. The apps send to it what only a
  // later version of them can apply, while a deploy lasts.
  {
    name: 'heartbeats'
    receive: true
    send: true
    duplicateDetection: false
    timeToLive: 'PT70M'
    deadLetterOnExpiry: false
  }
  {
    name: 'heartbeats-rejected'
    receive: false
    send: true
    duplicateDetection: true
    timeToLive: 'P90D'
    deadLetterOnExpiry: false
  }
]
var queues = concat(ownQueues, map(expirationQueues, queueName => {
  name: queueName
  receive: false
  send: true
  duplicateDetection: true
  timeToLive: 'P14D'
  deadLetterOnExpiry: true
}))

resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' = {
  name: name
  location: location
  tags: tags
  sku: {
    name: sku
    tier: sku
    capacity: sku == 'Premium' ? capacity : null
  }
  properties: {
    disableLocalAuth: true
    minimumTlsVersion: '1.2'
    publicNetworkAccess: publicAccess ? 'Enabled' : 'Disabled'
  }
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2026-01-01' = [for q in queues: {
  parent: namespace
  name: q.name
  properties: {
    lockDuration: lockDuration
    maxDeliveryCount: q.receive ? maxDeliveryCount : 10
    requiresSession: false
    requiresDuplicateDetection: q.duplicateDetection
    duplicateDetectionHistoryTimeWindow: q.duplicateDetection ? duplicateWindow : null
    defaultMessageTimeToLive: q.timeToLive
    deadLetteringOnMessageExpiration: q.deadLetterOnExpiry
    enableBatchedOperations: true
    maxSizeInMegabytes: 5120
  }
}]

resource receiver 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (q, i) in queues: if (q.receive) {
  name: guid(queue[i].id, identityId, serviceBusDataReceiver)
  scope: queue[i]
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataReceiver)
  }
}]

resource sender 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (q, i) in queues: if (q.send) {
  name: guid(queue[i].id, identityId, serviceBusDataSender)
  scope: queue[i]
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataSender)
  }
}]

// With the role of a receiver alone the scale controller cannot ask how long a queue is: it adds one instance after the
// other while messages come in, instead of as many as the queue needs.
resource owner 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for (q, i) in queues: if (q.receive && scaleByQueueLength) {
  name: guid(queue[i].id, identityId, serviceBusDataOwner)
  scope: queue[i]
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', serviceBusDataOwner)
  }
}]

// The worker reads the same queue with or without a topic. Other subscribers add subscriptions of their own.
module topic 'topic.bicep' = if (!empty(eventsTopic)) {
  name: 'topic'
  params: {
    namespaceName: namespace.name
    name: eventsTopic
    forwardTo: queue[0].name
    duplicateWindow: duplicateWindow
    lockDuration: lockDuration
    maxDeliveryCount: maxDeliveryCount
    principalId: principalId
    identityId: identityId
    senderRole: serviceBusDataSender
  }
}

resource diagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: namespace
  properties: {
    workspaceId: workspaceId
    logs: [
      {
        category: 'OperationalLogs'
        enabled: true
      }
    ]
    metrics: [
      {
        category: 'AllMetrics'
        enabled: true
      }
    ]
  }
}

output id string = namespace.id
// https://<name>.servicebus.windows.net:443/ without scheme and port; the domain differs between clouds.
output host string = split(split(namespace.properties.serviceBusEndpoint, '/')[2], ':')[0]
