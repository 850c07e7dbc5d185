// A topic that receives the events. Its first subscription forwards all of them to the worker queue.

param namespaceName string
param name string

@description('Queue that gets every event.')
param forwardTo string
param duplicateWindow string
param lockDuration string
param maxDeliveryCount int

@description('Principal of the apps, which send.')
param principalId string

@description('Resource id of the identity that has that principal.')
param identityId string
param senderRole string

resource namespace 'Microsoft.ServiceBus/namespaces@2026-01-01' existing = {
  name: namespaceName

  // A nested resource has the API version of its parent.
  resource topic 'topics' = {
    name: name
    properties: {
      requiresDuplicateDetection: true
      duplicateDetectionHistoryTimeWindow: duplicateWindow
      defaultMessageTimeToLive: 'P14D'
      enableBatchedOperations: true
      maxSizeInMegabytes: 5120
    }

    resource worker 'subscriptions' = {
      name: 'worker'
      properties: {
        forwardTo: forwardTo
        lockDuration: lockDuration
        maxDeliveryCount: maxDeliveryCount
        deadLetteringOnMessageExpiration: true
        enableBatchedOperations: true
      }
    }
  }
}

resource sender 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(namespace::topic.id, identityId, senderRole)
  scope: namespace::topic
  properties: {
    principalId: principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', senderRole)
  }
}
