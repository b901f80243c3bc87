# What the programs of deploy/producers need to be run by the tests: libraries for Python from the distribution, and for Node
# those of its lock file. Rust's is an example of the crate.
# shellcheck shell=bash

node_modules="$state/producers/node_modules"

needs_producers() {
  needs python3-protobuf "$system_python" -c 'import google.protobuf'
  # A Node that is there may have come with its own npm, or from elsewhere than the distribution.
  if ! command -v node >/dev/null; then needs nodejs command -v node; fi
  if ! command -v npm >/dev/null; then needs npm command -v npm; fi
}

# Why the Node program cannot be run; nothing when it can.
node_obstacle() {
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "node and npm are not on the PATH"
  elif (($(node -p 'process.versions.node.split(".")[0]') < 18)); then
    echo "node $(node --version) is older than 18"
  elif ! fetch_node_modules; then
    echo "the Node program's libraries could not be fetched; see $state/log/node.log"
  fi
}

# Made anew whenever the lock file changes.
fetch_node_modules() {
  local folder="$state/producers" from="$root/deploy/producers/node"
  if cmp -s "$from/package-lock.json" "$folder/package-lock.json" && [[ -d $node_modules ]]; then return 0; fi
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$from"/package{,-lock}.json "$folder/"
  (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund) >"$state/log/node.log" 2>&1 ||
    { rm -rf "$folder"; return 1; }
}
