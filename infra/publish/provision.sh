#!/bin/sh
# provision.sh GROUP FILE.bicepparam [ARGUMENT...] - deploys the templates to a resource group.
#
# ARM replaces all app settings, so the URLs of the packages that the apps run are read first and passed on. Further
# arguments go to az deployment group create; --what-if shows what would change and changes nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/publish/common.sh
. "$here/common.sh"

[ $# -ge 2 ] || die 'usage: provision.sh GROUP FILE.bicepparam (or: make provision GROUP=name PARAMS=infra/small.bicepparam)'
group=$1
parameters=$2
shift 2
[ -n "$group" ] || die 'which resource group? Say GROUP=name'
[ -f "$parameters" ] || die "there is no file '$parameters'. Say PARAMS=infra/small.bicepparam or PARAMS=infra/large.bicepparam"

check_login
az group show --name "$group" --output none 2>/dev/null ||
  die "there is no resource group '$group' in subscription '$subscription'. Make it: az group create --name $group --location REGION"

package_of api
export API_PACKAGE_URL="$current" API_PREVIOUS_PACKAGE_URL="$previous"
package_of listener
export LISTENER_PACKAGE_URL="$current" LISTENER_PREVIOUS_PACKAGE_URL="$previous"

az deployment group create --resource-group "$group" --name userconnectivity --parameters "$parameters" \
  --query properties.outputs --output json "$@" || die 'the deployment failed (see above)'
