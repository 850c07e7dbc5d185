#!/bin/sh
# azd.sh before|after - the hooks of azure.yaml, run by azd provision and azd up with the values of azd's environment.
#
# before: makes the resource group if it is missing, and gives azd the URLs of the packages that the apps run.
# after: makes the package and publishes it to both apps. New roles take some minutes, so it tries for a while.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/publish/common.sh
. "$here/common.sh"

[ "${1:-}" = before ] || [ "${1:-}" = after ] || die 'usage: azd.sh before|after (it is called by azd up)'

group=${AZURE_RESOURCE_GROUP:-}
[ -n "$group" ] || die 'azd does not know the resource group. Run: azd env set AZURE_RESOURCE_GROUP NAME'
check_login
if [ -n "${AZURE_SUBSCRIPTION_ID:-}" ]; then
  mine=$(az account show --query id --output tsv) || die 'the subscription of the Azure CLI could not be read'
  [ "$mine" = "$AZURE_SUBSCRIPTION_ID" ] ||
    die "azd deploys to subscription $AZURE_SUBSCRIPTION_ID, the Azure CLI is in $mine. Run: az account set --subscription $AZURE_SUBSCRIPTION_ID"
fi

before() {
  need azd 'Install the Azure Developer CLI'
  if ! az group show --name "$group" --output none 2>/dev/null; then
    [ -n "${AZURE_LOCATION:-}" ] || die 'azd does not know the region. Run: azd env set AZURE_LOCATION REGION'
    az group create --name "$group" --location "$AZURE_LOCATION" --output none || die "the resource group '$group' could not be made"
  fi
  pass_on api API
  pass_on listener LISTENER
}

# pass_on ROLE NAME gives azd the packages of an app, as NAME_PACKAGE_URL and NAME_PREVIOUS_PACKAGE_URL.
pass_on() {
  package_of "$1"
  # azd keeps its values in a plain file, and an argument is for everybody to see.
  case $current$previous in
    *\?*) die "the package of the $1 app has a signed URL (storageAuth keys), which azd would keep in a file. Use make provision" ;;
  esac
  azd env set "$2_PACKAGE_URL" "$current" || die 'azd could not keep a value (see above)'
  azd env set "$2_PREVIOUS_PACKAGE_URL" "$previous" || die 'azd could not keep a value (see above)'
}

after() {
  # azd passes the outputs of the templates under their names.
  [ -n "${listenerApp:-}" ] && [ -n "${apiApp:-}" ] || die 'azd does not pass the outputs listenerApp and apiApp. Publish by hand: make publish APP=name'
  cd "$here/../.."
  for name in "$listenerApp" "$apiApp"; do # the listener first, so that nobody expires unseen
    try=1
    until make publish "APP=$name"; do
      [ "$try" -lt "$ATTEMPTS" ] || die "'$name' could not be published (see above). When the reason is mended: make publish APP=$name"
      try=$((try + 1))
      say "again in $WAIT s: a new role takes some minutes to work"
      sleep "$WAIT"
    done
  done
}

ATTEMPTS=${PUBLISH_ATTEMPTS:-10}
WAIT=${PUBLISH_WAIT:-60}
"$1"
