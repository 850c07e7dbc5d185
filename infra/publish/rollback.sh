#!/bin/sh
# rollback.sh APP - goes back to the package that the app ran before. A second call comes back.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=infra/publish/common.sh
. "$here/common.sh"

[ $# -eq 1 ] || die 'usage: rollback.sh APP (or: make rollback APP=name)'

need curl 'It asks the app whether it lives.'
check_login
make_private_dir
find_app "$1"

now=$(setting WEBSITE_RUN_FROM_PACKAGE)
previous=$(setting PREVIOUS_PACKAGE_URL)
[ -n "$previous" ] || die "'$app' has no previous package: PREVIOUS_PACKAGE_URL is not set. It is set by the second publish"
[ "$previous" != "$now" ] || die "the previous package of '$app' is the one that it runs"

if [ -n "$now" ]; then
  set_settings WEBSITE_RUN_FROM_PACKAGE "$previous" PREVIOUS_PACKAGE_URL "$now"
else
  set_settings WEBSITE_RUN_FROM_PACKAGE "$previous"
fi
say "ran: $(without_query "${now:-nothing}")"
say "runs: $(without_query "$previous")"
bring_up "Come back with: make rollback APP=$app"
