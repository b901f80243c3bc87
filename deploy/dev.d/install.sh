#!/usr/bin/env bash
# install.sh PACKAGE...: apt-get install, with nothing started, enabled or set up by it. Run as root by deploy/dev.
#
# A package such as postgresql starts its service, has it start at boot, and makes a database of its own. Whoever only
# wanted to run some tests did not ask for that; services that were there before are not touched.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive

policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.conf
kept=.postrider-kept
apt=(apt-get -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 -qq)

restore() {
  if [[ -e $policy$kept ]]; then mv -f "$policy$kept" "$policy"; elif [[ -n ${ours:-} ]]; then rm -f "$policy"; fi
  if [[ -e $cluster$kept ]]; then mv -f "$cluster$kept" "$cluster"; fi
}
trap restore EXIT

units=()
for package in "$@"; do
  case $package in
    rabbitmq-server | postgresql | postfix) units+=("$package") ;;
    spamassassin) units+=(spamassassin-maintenance.timer) ;;
  esac
done
dpkg -s erlang-base >/dev/null 2>&1 || units+=(epmd.socket epmd.service)

# 101 is how a policy says no. One that already says so, as in most containers, stays.
denied() {
  local answer=0
  "$policy" rabbitmq-server start >/dev/null 2>&1 || answer=$?
  [[ $answer == 101 ]]
}
if ! denied; then
  [[ ! -e $policy ]] || cp -a "$policy" "$policy$kept"
  ours=yes
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

"${apt[@]}" update
if [[ " $* " == *" postgresql "* ]]; then
  "${apt[@]}" install -y --no-install-recommends postgresql-common
  cp -a "$cluster" "$cluster$kept"
  echo 'create_main_cluster = false' >>"$cluster"
fi
if [[ " $* " == *" postfix "* ]]; then
  echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
fi
"${apt[@]}" install -y --no-install-recommends "$@"

if [[ -d /run/systemd/system && ${#units[@]} -gt 0 ]]; then
  for unit in "${units[@]}"; do systemctl --quiet disable "$unit" 2>/dev/null || true; done
fi
