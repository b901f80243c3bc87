# What is shipped beside the program, read by those who will read it: schemas, promtool, systemd. Nothing of it is installed.
# shellcheck shell=bash

# promtool of the distribution's package, without the service that the package would set up.
promtool_path() {
  local folder="$state/prometheus"
  if command -v promtool; then return; fi
  if [[ ! -x $folder/usr/bin/promtool ]]; then
    rm -rf "$folder"
    mkdir -p "$folder"
    (cd "$folder" && apt-get download prometheus && dpkg-deb -x prometheus_*.deb .) >"$state/log/promtool.log" 2>&1 ||
      return 1
  fi
  echo "$folder/usr/bin/promtool"
}

manifests_kubernetes() {
  local file
  for file in deploy/kubernetes/*.yaml; do
    # Those of extensions are not in Kubernetes' own schemas; kustomize is a file of kubectl.
    case $file in */kustomization.yaml | */scaledobject.yaml) continue ;; esac
    "$state/manifests/bin/kubernetes-validate" --strict "$file" || return 1
  done
}

# Only where Node is: its package is the one place where KEDA's own schemas can be had.
manifests_keda() {
  local folder="$state/manifests/node" from="$root/deploy/dev.d/manifests"
  command -v npm >/dev/null || { say "no npm here: scaledobject.yaml is not read"; return 0; }
  if ! cmp -s "$from/package-lock.json" "$folder/package-lock.json"; then
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$from"/package{,-lock}.json "$folder/"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund) >"$state/log/manifests-node.log" 2>&1 ||
      { rm -rf "$folder"; die "KEDA's schemas could not be fetched; see $state/log/manifests-node.log"; }
  fi
  NODE_MODULES="$folder/node_modules" node "$from/keda.cjs" deploy/kubernetes/scaledobject.yaml
}

manifests_rules() {
  local promtool
  promtool=$(promtool_path) || { say "promtool cannot be had; see $state/log/promtool.log"; return 1; }
  "$promtool" check rules deploy/prometheus/alerts.yml &&
    "$promtool" check config deploy/prometheus/prometheus.yml &&
    "$promtool" test rules deploy/prometheus/alerts_test.yml
}

manifests_unit() {
  local scratch="$state/run/postrider.service"
  command -v systemd-analyze >/dev/null || { say "no systemd-analyze here: the unit is not read"; return 0; }
  # It looks for the program, which need not be installed here.
  sed 's|^ExecStart=/usr/local/bin/postrider|ExecStart=/bin/true|' deploy/systemd/postrider.service >"$scratch"
  systemd-analyze verify "$scratch" &&
    systemd-analyze security --offline=true --threshold=20 "$scratch" | tail -n 1
}
