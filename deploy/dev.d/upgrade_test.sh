# The version of another commit, built beside this one, for the test that has them work side by side.
# shellcheck shell=bash

# upgrade_build REF: prints the folder of that commit's tree; its binary is built into a target of all such trees
upgrade_build() {
  local commit folder
  commit=$(git rev-parse --verify --quiet "$1^{commit}") || die "there is no commit called $1"
  folder="$state/upgrade/$commit"
  if [[ ! -d $folder ]]; then
    mkdir -p "$folder.new"
    git archive "$commit" | tar -x -C "$folder.new"
    mv "$folder.new" "$folder"
  fi
  (cd "$folder" && CARGO_TARGET_DIR="$state/upgrade/target" cargo build --bin postrider 8>&- >&2) ||
    die "the version of $1 cannot be built"
  cp -f "$state/upgrade/target/debug/postrider" "$folder/postrider"
  echo "$folder"
}
