// What somebody should hear about. Metrics come from the services and do not need the logs. The listener's own numbers
// come from the line "listener report" that it logs every minute (docs/deploy.md has the fields): what reads them is
// blind while the daily quota of the logs is used up, which the alert logs-capped tells.

param prefix string
param location string
param tags object

@description('Address that alerts go to. Empty: nobody is told.')
param email string
param workspaceId string
param listenerName string
param listenerId string
param serviceBusId string
param cosmosId string

@description('Resource id of Redis, when watchRedis is true.')
param redisId string
param watchRedis bool
param redisMaxClients int

resource people 'Microsoft.Insights/actionGroups@2023-01-01' = if (!empty(email)) {
  name: '${prefix}-alerts'
  location: 'global'
  tags: tags
  properties: {
    groupShortName: take(prefix, 12)
    enabled: true
    emailReceivers: [
      {
        name: 'email'
        emailAddress: email
        useCommonAlertSchema: true
      }
    ]
  }
}

var metricActions = empty(email) ? [] : [{ actionGroupId: people.id }]
var queryActions = empty(email) ? [] : [people.id]

// ---- from the metrics of the services ----

resource deadLetters 'Microsoft.Insights/metricAlerts@2026-01-01' = {
  name: '${prefix}-dead-letters'
  location: 'global'
  tags: tags
  properties: {
    description: 'Messages that could not be processed lie in a dead-letter queue. They stay there until somebody looks.'
    severity: 2
    enabled: true
    scopes: [serviceBusId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.MultipleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'dead letters'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'DeadletteredMessages'
          timeAggregation: 'Maximum'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [
            {
              name: 'EntityName'
              operator: 'Include'
              values: ['*']
            }
          ]
        }
      ]
    }
    autoMitigate: true
    actions: metricActions
  }
}

resource rejected 'Microsoft.Insights/metricAlerts@2026-01-01' = {
  name: '${prefix}-rejected'
  location: 'global'
  tags: tags
  properties: {
    description: 'The worker put messages aside that can never succeed. Each has its reason.'
    severity: 2
    enabled: true
    scopes: [serviceBusId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.MultipleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'rejected'
          metricNamespace: 'Microsoft.ServiceBus/namespaces'
          metricName: 'ActiveMessages'
          timeAggregation: 'Maximum'
          operator: 'GreaterThan'
          threshold: 0
          dimensions: [
            {
              name: 'EntityName'
              operator: 'Include'
              values: ['connectivity-events-rejected', 'heartbeats-rejected']
            }
          ]
        }
      ]
    }
    autoMitigate: true
    actions: metricActions
  }
}

resource throttledLog 'Microsoft.Insights/metricAlerts@2026-01-01' = {
  name: '${prefix}-cosmos-429'
  location: 'global'
  tags: tags
  properties: {
    description: 'Cosmos DB answers 429: the log falls behind. With autoscale raise cosmosMaxRu. A serverless account does not become an autoscale one by a deployment: see Growing in docs/deploy.md.'
    severity: 2
    enabled: true
    scopes: [cosmosId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.MultipleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: '429'
          metricNamespace: 'Microsoft.DocumentDB/databaseAccounts'
          metricName: 'TotalRequests'
          timeAggregation: 'Count'
          operator: 'GreaterThan'
          threshold: 100
          dimensions: [
            {
              name: 'StatusCode'
              operator: 'Include'
              values: ['429']
            }
          ]
        }
      ]
    }
    autoMitigate: true
    actions: metricActions
  }
}

resource redisConnections 'Microsoft.Insights/metricAlerts@2026-01-01' = if (watchRedis) {
  name: '${prefix}-redis-connections'
  location: 'global'
  tags: tags
  properties: {
    description: 'More than 80 % of the connections that Redis allows are taken. Lower apiMaxInstances. An unsharded Managed Redis keeps its size: see Growing in docs/deploy.md.'
    severity: 2
    enabled: true
    scopes: [redisId]
    evaluationFrequency: 'PT5M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'connections'
          metricName: 'connectedclients'
          timeAggregation: 'Maximum'
          operator: 'GreaterThan'
          threshold: redisMaxClients * 80 / 100
        }
      ]
    }
    autoMitigate: true
    actions: metricActions
  }
}

// The health check asks each instance of the listener for /api/live, which answers 503 where its loop does not turn. It
// is a metric of the platform: neither the logs nor Redis have a part in it.
var listenerHealth = [
  {
    name: 'listener-down'
    description: 'No instance of the listener is well: nobody turns expired sessions into events. Nothing is lost; events come late.'
    severity: 0
    threshold: 1
  }
  {
    name: 'listener-unhealthy'
    description: 'An instance of the listener does not answer /api/live, or its loop does not turn. The platform replaces it.'
    severity: 1
    threshold: 100
  }
]

resource listenerUnhealthy 'Microsoft.Insights/metricAlerts@2026-01-01' = [for a in listenerHealth: {
  name: '${prefix}-${a.name}'
  location: 'global'
  tags: tags
  properties: {
    description: a.description
    severity: a.severity
    enabled: true
    scopes: [listenerId]
    evaluationFrequency: 'PT1M'
    windowSize: 'PT5M'
    criteria: {
      'odata.type': 'Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria'
      allOf: [
        {
          criterionType: 'StaticThresholdCriterion'
          name: 'health check'
          metricName: 'HealthCheckStatus'
          timeAggregation: 'Average'
          operator: 'LessThan'
          threshold: a.threshold
        }
      ]
    }
    autoMitigate: true
    actions: metricActions
  }
}]

// ---- from the line that the listener logs ----

// The table takes the line as text, and the pattern reads both forms of it: "lagMs":3 and lagMs=3.
var reports = replace('''
AppTraces
| where AppRoleName =~ '{app}' and Message has 'listener report'
| extend lagMs = tolong(extract('lagMs"?[:=]([0-9]+)', 1, Message)),
         outboxDepth = tolong(extract('outboxDepth"?[:=]([0-9]+)', 1, Message)),
         oldestOutboxMs = tolong(extract('oldestOutboxMs"?[:=]([0-9]+)', 1, Message))
''', '{app}', listenerName)

var queryAlerts = [
  {
    name: 'listener-silent'
    description: 'No listener has reported for a quarter of an hour, although the logs are taken.'
    severity: 1
    windowSize: 'PT15M'
    // Counted by query, so that no line at all gives the number 0 and not an empty answer. The metrics of the services
    // come into the same workspace all the time: when they are missing too, the workspace takes nothing, and silence
    // tells nothing.
    query: 'let taken = toscalar(AzureMetrics | count);\n${reports}| summarize reports = count()\n| extend reports = iff(taken > 0, reports, 1)'
    column: 'reports'
    aggregation: 'Total'
    operator: 'LessThan'
    threshold: 1
  }
  {
    name: 'logs-capped'
    description: 'The daily quota of the logs is used up. The alerts that read the log are blind until it starts again.'
    severity: 2
    windowSize: 'PT15M'
    // The workspace notes it in a table that has no quota.
    query: '_LogOperation | where Category =~ \'Ingestion\' and Detail has \'OverQuota\' | summarize capped = count()'
    column: 'capped'
    aggregation: 'Total'
    operator: 'GreaterThan'
    threshold: 0
  }
  {
    name: 'expiry-lag'
    description: 'Sessions are found expired more than a second after their deadline.'
    severity: 1
    windowSize: 'PT5M'
    query: reports
    column: 'lagMs'
    aggregation: 'Maximum'
    operator: 'GreaterThan'
    threshold: 1000
  }
  {
    name: 'outbox-depth'
    description: 'Events wait in the outbox: Service Bus does not take them, or not fast enough.'
    severity: 1
    windowSize: 'PT5M'
    query: reports
    column: 'outboxDepth'
    aggregation: 'Minimum'
    operator: 'GreaterThan'
    threshold: 1000
  }
  {
    name: 'outbox-old'
    description: 'An event has waited in the outbox for more than a minute.'
    severity: 1
    windowSize: 'PT5M'
    query: reports
    column: 'oldestOutboxMs'
    aggregation: 'Minimum'
    operator: 'GreaterThan'
    threshold: 60000
  }
]

resource queryAlert 'Microsoft.Insights/scheduledQueryRules@2026-03-01' = [for a in queryAlerts: {
  name: '${prefix}-${a.name}'
  location: location
  tags: tags
  kind: 'LogAlert'
  properties: {
    displayName: '${prefix}-${a.name}'
    description: a.description
    severity: a.severity
    enabled: true
    scopes: [workspaceId]
    evaluationFrequency: 'PT5M'
    windowSize: a.windowSize
    criteria: {
      allOf: [
        {
          query: a.query
          metricMeasureColumn: a.column
          timeAggregation: a.aggregation
          operator: a.operator
          threshold: a.threshold
          failingPeriods: {
            numberOfEvaluationPeriods: 1
            minFailingPeriodsToAlert: 1
          }
        }
      ]
    }
    actions: {
      actionGroups: queryActions
    }
    autoMitigate: true
    // The table is empty until the first report.
    skipQueryValidation: true
  }
}]
