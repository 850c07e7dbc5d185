// The virtual network of a private set-up: a subnet for each plan, which its apps call out of, and one for the private
// endpoints.

param name string
param location string
param tags object

@description('Addresses of the network, in a private range: 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16. Apps send what goes there through the network, and everything else as before.')
param addressPrefix string

// Only plans call out of these.
var forPlans = [
  {
    name: 'plan'
    properties: {
      serviceName: 'Microsoft.Web/serverFarms'
    }
  }
]

resource network 'Microsoft.Network/virtualNetworks@2026-03-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    addressSpace: {
      addressPrefixes: [addressPrefix]
    }
    subnets: [
      {
        name: 'api'
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 24, 0)
          delegations: forPlans
        }
      }
      {
        name: 'listener'
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 24, 1)
          delegations: forPlans
        }
      }
      {
        name: 'endpoints'
        properties: {
          addressPrefix: cidrSubnet(addressPrefix, 24, 2)
          privateEndpointNetworkPolicies: 'Disabled'
        }
      }
    ]
  }
}

output id string = network.id
output apiSubnetId string = '${network.id}/subnets/api'
output listenerSubnetId string = '${network.id}/subnets/listener'
output endpointsSubnetId string = '${network.id}/subnets/endpoints'
