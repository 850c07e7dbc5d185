// Private endpoints: an address in the network for each service, and its name there.

param prefix string
param suffix string
param location string
param tags object
param networkId string
param subnetId string

@description('Services: name (of the endpoint), group (sub-resource) and zone (private DNS zone).')
param services array

@description('Resource ids of the services, in the same order. They are apart, because the names are known before the deployment and these are not.')
param ids array

var zones = union(map(services, s => s.zone), [])

resource zone 'Microsoft.Network/privateDnsZones@2024-06-01' = [for zoneName in zones: {
  name: zoneName
  location: 'global'
  tags: tags
}]

resource link 'Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01' = [for (zoneName, i) in zones: {
  parent: zone[i]
  name: '${prefix}-${suffix}'
  location: 'global'
  tags: tags
  properties: {
    registrationEnabled: false
    virtualNetwork: {
      id: networkId
    }
  }
}]

resource endpoint 'Microsoft.Network/privateEndpoints@2026-03-01' = [for (s, i) in services: {
  name: '${prefix}-${s.name}-endpoint-${suffix}'
  location: location
  tags: tags
  properties: {
    subnet: {
      id: subnetId
    }
    privateLinkServiceConnections: [
      {
        name: s.name
        properties: {
          privateLinkServiceId: ids[i]
          groupIds: [s.group]
        }
      }
    ]
  }
}]

// It writes the address of the endpoint into the zone. The zone is linked first, so that no name is looked up in vain.
resource group 'Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2026-03-01' = [for (s, i) in services: {
  parent: endpoint[i]
  name: 'default'
  properties: {
    privateDnsZoneConfigs: [
      {
        name: s.name
        properties: {
          privateDnsZoneId: resourceId('Microsoft.Network/privateDnsZones', s.zone)
        }
      }
    ]
  }
  dependsOn: [link]
}]
