// A Linux Elastic Premium plan: instances are added and removed with the load, one is always billed.

param name string
param location string
param tags object
param sku string

@description('Instances that are always there.')
param minInstances int

@description('Most instances, whatever the apps ask for.')
param maxInstances int

@description('Spreads the instances over zones. Needs two instances.')
param zoneRedundant bool

resource plan 'Microsoft.Web/serverfarms@2025-03-01' = {
  name: name
  location: location
  tags: tags
  kind: 'elastic'
  sku: {
    name: sku
    tier: 'ElasticPremium'
    family: 'EP'
    capacity: minInstances
  }
  properties: {
    reserved: true
    elasticScaleEnabled: true
    maximumElasticWorkerCount: maxInstances
    zoneRedundant: zoneRedundant
  }
}

output id string = plan.id
