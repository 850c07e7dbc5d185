# shellcheck shell=sh
# What publish.sh, rollback.sh and provision.sh share. POSIX sh; sourced, not run.
#
# Secrets (a signed package URL, a function key) never become an argument of a command and are never printed:
# they go through a private temporary file or a pipe.

# How often an answer is asked for before giving up, and the seconds in between.
TRIES=${PUBLISH_TRIES:-60}
PAUSE=${PUBLISH_PAUSE:-5}

say() { printf '%s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# need TOOL HOW-TO-GET-IT
need() { command -v "$1" >/dev/null 2>&1 || die "$1 is not installed. $2"; }

check_login() {
  need az 'Install the Azure CLI, then run: az login'
  subscription=$(az account show --query name --output tsv 2>/dev/null) ||
    die 'not logged in to Azure. Run: az login (and az account set --subscription NAME)'
  say "subscription: $subscription"
}

# private_file prints the name of a new file that only this user can read. It goes when the script ends.
private_file() {
  [ -n "${private_dir:-}" ] || die 'private_dir is not set'
  mktemp "$private_dir/XXXXXX"
}

# make_private_dir must run in the script's own shell, because the trap belongs to it.
make_private_dir() {
  private_dir=$(mktemp -d)
  trap 'rm -rf "$private_dir"' EXIT
  trap 'exit 130' INT TERM
}

# find_app NAME sets app, app_id, group and host, and reads the settings that matter here.
find_app() {
  app=$1
  case $app in
    '') die 'which app? Say APP=name (the deployment printed the names as apiApp and listenerApp)' ;;
    *[!A-Za-z0-9-]*) die "'$app' is not the name of an app: letters, digits and dashes only" ;;
  esac
  row=$(az functionapp list --query "[?name=='$app'].[id, resourceGroup, defaultHostName]" --output tsv) ||
    die 'the function apps could not be listed (see above)'
  [ -n "$row" ] || die "there is no function app '$app' in subscription '$subscription'. List them: az functionapp list --query '[].name'"
  tab=$(printf '\t')
  IFS=$tab read -r app_id group host <<ROW
$row
ROW
  say "app: $app in resource group $group, https://$host"
  read_settings
  [ "$(setting FUNCTIONS_WORKER_RUNTIME)" = custom ] ||
    die "'$app' is not an app of these templates: FUNCTIONS_WORKER_RUNTIME is '$(setting FUNCTIONS_WORKER_RUNTIME)', not 'custom'"
  if [ -n "$(setting AzureWebJobsStorage__accountName)" ]; then
    storage=identity
  elif [ -n "$(setting WEBSITE_CONTENTSHARE)" ]; then
    storage=keys
  else
    die "'$app' has neither AzureWebJobsStorage__accountName nor WEBSITE_CONTENTSHARE. Deploy the templates first: infra/publish/provision.sh"
  fi
  say "storage: $storage"
}

read_settings() {
  settings=$(az functionapp config appsettings list --resource-group "$group" --name "$app" --output tsv --query \
    "[?contains(['FUNCTIONS_WORKER_RUNTIME', 'AzureWebJobsStorage__accountName', 'WEBSITE_CONTENTSHARE', 'WEBSITE_RUN_FROM_PACKAGE', 'WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID', 'PREVIOUS_PACKAGE_URL'], name)].[name, value]") ||
    die "the settings of '$app' could not be read. The role Website Contributor on the app is needed"
}

# setting NAME prints the value that read_settings saw, or nothing.
setting() { printf '%s\n' "$settings" | awk -F '\t' -v name="$1" '$1 == name { print $2; exit }'; }

# package_of ROLE sets current and previous to the packages of the app of $group with that tag, or to none.
package_of() {
  current=none
  previous=none
  app=$(az functionapp list --resource-group "$group" --query "[?tags.userconnectivity=='$1'].name" --output tsv) ||
    die "the function apps of '$group' could not be listed (see above)"
  case $app in
    '') return ;;
    *[!A-Za-z0-9-]*) die "'$group' holds more than one $1 app: $(printf '%s' "$app" | tr '\n' ' '). Use one resource group for each set-up" ;;
  esac
  read_settings
  current=$(setting WEBSITE_RUN_FROM_PACKAGE)
  previous=$(setting PREVIOUS_PACKAGE_URL)
  current=${current:-none}
  previous=${previous:-none}
  say "$1 app: $app runs $(without_query "$current")"
}

# set_settings NAME VALUE [NAME VALUE]... writes all of them at once: each write restarts the app.
set_settings() {
  file=$(private_file)
  {
    separator='{'
    while [ $# -gt 1 ]; do
      printf '%s"%s": "%s"' "$separator" "$1" "$2"
      separator=', '
      shift 2
    done
    printf '}\n'
  } >"$file"
  az functionapp config appsettings set --resource-group "$group" --name "$app" --settings "@$file" --output none ||
    die "the settings of '$app' could not be written. The role Website Contributor on the app is needed"
}

# without_query prints a URL without what may be secret in it.
without_query() { printf '%s\n' "${1%%\?*}"; }

# bring_up restarts the app, waits until it answers, tells the platform about its triggers, and looks at its health.
# $1 is what to do when it does not come up.
bring_up() {
  az functionapp restart --resource-group "$group" --name "$app" --output none || die "'$app' could not be restarted"
  wait_live "$1"
  sync_triggers
  check_health "$1"
}

# wait_live wants three good answers in a row: the first may still come from the process that is being replaced.
wait_live() {
  try=0
  good=0
  while [ "$good" -lt 3 ]; do
    try=$((try + 1))
    [ "$try" -le "$TRIES" ] || die "https://$host/api/live answered $code after $TRIES tries. $(live_hint "$code") $1"
    [ "$try" -eq 1 ] || sleep "$PAUSE"
    code=$(curl --silent --output /dev/null --max-time 10 --write-out '%{http_code}' "https://$host/api/live") || code=000
    if [ "$code" = 200 ]; then good=$((good + 1)); else good=0; fi
  done
  say "live: 200 ($try tries)"
}

live_hint() {
  case $1 in
    000) say 'There was no answer: is the host name reachable from here?' ;;
    404) say 'The host runs without the functions: it could not read the package.' ;;
    401 | 403) say 'Something in front of the app refuses: access restrictions?' ;;
    *) say 'The host or the handler does not start: see the log stream of the app.' ;;
  esac
}

# sync_triggers lets the scale controller know the queues. The call fails while the host is starting.
sync_triggers() {
  try=1
  until az rest --method post --url "$app_id/syncfunctiontriggers?api-version=2024-11-01" --output none 2>/dev/null; do
    [ "$try" -lt 5 ] || die "the triggers of '$app' could not be synchronised: queues are read, but the app may not scale with them. Try again: az rest --method post --url '$app_id/syncfunctiontriggers?api-version=2024-11-01'"
    try=$((try + 1))
    sleep "$PAUSE"
  done
  say 'triggers: synchronised'
}

# check_health passes when the app says ok, or says degraded three times in a row.
check_health() {
  key=$(az functionapp keys list --resource-group "$group" --name "$app" --query functionKeys.default --output tsv) ||
    die "the function key of '$app' could not be read, so its health is not known. The role Website Contributor on the app is needed"
  case $key in
    '' | None) die "'$app' has no function key named default, so its health is not known" ;; # None: how az prints nothing
  esac
  body=$(private_file)
  try=0
  degraded=0
  while :; do
    try=$((try + 1))
    [ "$try" -le "$TRIES" ] || die "https://$host/api/health answered $code, status $status, after $TRIES tries. Its last answer: $(cat "$body"). $1"
    [ "$try" -eq 1 ] || sleep "$PAUSE"
    code=$(printf 'header = "x-functions-key: %s"\n' "$key" |
      curl --silent --config - --output "$body" --max-time 30 --write-out '%{http_code}' "https://$host/api/health") || code=000
    # The status of the whole is the first of the answer; those of the parts follow.
    status=$(tr -d '\n' <"$body" | sed -n 's/^[[:space:]]*{[[:space:]]*"status"[[:space:]]*:[[:space:]]*"\([a-z]*\)".*/\1/p')
    status=${status:-unknown}
    case $code:$status in
      200:ok) break ;;
      200:degraded)
        degraded=$((degraded + 1))
        [ "$degraded" -lt 3 ] || break
        ;;
      *) degraded=0 ;;
    esac
  done
  say "health: $status ($try tries)"
  say "$(cat "$body")"
  [ "$status" = ok ] || say "The app runs, but not all of it is well: the answer above says what to do."
}
