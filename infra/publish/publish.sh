#!/bin/sh
# publish.sh APP ZIP FOLDER - publishes the package to one function app and says whether it works there.
#
# ZIP is what make package wrote, FOLDER what it was made from. With identity-based storage the zip is uploaded
# under its hash; with keys, Azure Functions Core Tools publish the folder.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/publish/common.sh
. "$here/common.sh"

[ $# -eq 3 ] || die 'usage: publish.sh APP ZIP FOLDER (or: make publish APP=name)'
zip=$2
folder=$3
[ -f "$zip" ] || die "there is no package $zip. Run: make package"
[ -f "$folder/host.json" ] || die "there is no staged app in $folder. Run: make package"

need curl 'It asks the app whether it lives.'
check_login
make_private_dir
find_app "$1"

hash_of() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# Sets url to that of the package, which is then in the storage account.
upload() {
  account=$(setting AzureWebJobsStorage__accountName)
  [ -n "$(setting WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID)" ] ||
    die "'$app' has no WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID, so the platform could not read the package. Deploy the templates first: infra/publish/provision.sh"
  hash=$(hash_of "$zip")
  endpoint=$(az storage account show --name "$account" --query primaryEndpoints.blob --output tsv) ||
    die "the storage account $account could not be read. The role Reader on the resource group is needed"
  url="${endpoint%/}/packages/$hash.zip"
  denied="packages cannot be uploaded to $account. The role Storage Blob Data Contributor on its container packages is needed (parameter publisherPrincipalId of the templates); a new role takes some minutes to work"
  there=$(az storage blob exists --auth-mode login --account-name "$account" --container-name packages --name "$hash.zip" --query exists --output tsv) || die "$denied"
  if [ "$there" = true ]; then
    say "package: $hash.zip is there already"
  else
    az storage blob upload --auth-mode login --account-name "$account" --container-name packages --name "$hash.zip" \
      --file "$zip" --content-type application/zip --no-progress --only-show-errors --output none || die "$denied"
    say "package: $hash.zip uploaded"
  fi
}

before=$(setting WEBSITE_RUN_FROM_PACKAGE)
case $storage in
  identity)
    upload
    if [ "$url" = "$before" ]; then
      say 'the app runs this package already'
    elif [ -n "$before" ]; then
      set_settings WEBSITE_RUN_FROM_PACKAGE "$url" PREVIOUS_PACKAGE_URL "$before"
    else
      set_settings WEBSITE_RUN_FROM_PACKAGE "$url"
    fi
    ;;
  keys)
    need func 'Install Azure Functions Core Tools 4: npm install -g azure-functions-core-tools@4'
    # The folder has no local.settings.json, so the tools learn the runtime from the environment. The name of the
    # executable in host.json gets the exec bit; everything else loses it.
    (cd "$folder" && FUNCTIONS_WORKER_RUNTIME=custom func azure functionapp publish "$app" --no-build) ||
      die "func could not publish to '$app' (see above)"
    read_settings
    url=$(setting WEBSITE_RUN_FROM_PACKAGE)
    [ -n "$url" ] || die "func published, but '$app' has no WEBSITE_RUN_FROM_PACKAGE"
    [ -z "$before" ] || [ "$url" = "$before" ] || set_settings PREVIOUS_PACKAGE_URL "$before"
    ;;
esac
say "runs: $(without_query "$url")"

if [ -n "$before" ]; then
  bring_up "Go back with: make rollback APP=$app"
else
  bring_up 'It is the first package of this app, so there is nothing to go back to.'
fi
