# A browser and its driver, and the accessibility checker that is run in it, for the tests of the pages.
# shellcheck shell=bash

# The checker (axe-core, MPL-2.0) in a package of a registry that a Debian machine reaches without more tools.
axe_package='axe-playwright-python==0.1.8 --hash=sha256:fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8'
axe_file="$state/axe/axe.min.js"

# Debian has a package of each; elsewhere they may be on the PATH already.
has_browser() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }
is_debian() { (. /etc/os-release 2>/dev/null && [[ ${ID:-} == debian ]]); }

needs_browser() {
  if has_browser || is_debian; then
    needs chromium command -v chromium
    needs chromium-driver command -v chromedriver
    needs python3-pip "$system_python" -m pip --version
  fi
}

# Why there is none; nothing when there is.
browser_obstacle() {
  if ! has_browser; then
    echo "chromium and chromedriver are not on the PATH, and this distribution has no packages of them that deploy/dev knows"
  elif [[ ! -s $axe_file ]] && ! fetch_axe; then
    echo "the accessibility checker could not be fetched; see $state/log/axe.log"
  fi
}

fetch_axe() {
  local scratch="$state/axe"
  mkdir -p "$scratch"
  echo "$axe_package" >"$scratch/requirements.txt"
  "$system_python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$scratch" \
    -r "$scratch/requirements.txt" >"$state/log/axe.log" 2>&1 || return 1
  "$system_python" - "$scratch" "$axe_file" <<'PYTHON' >>"$state/log/axe.log" 2>&1
import pathlib, sys, zipfile
folder, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
wheel = next(folder.glob("axe_playwright_python-*.whl"))
target.write_bytes(zipfile.ZipFile(wheel).read("axe_playwright_python/axe.min.js"))
PYTHON
}
