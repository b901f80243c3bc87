# What must be on the machine. Looks before it installs, and says what it is going to install.
# shellcheck shell=bash

# needs PACKAGE PROBE...: remembers PACKAGE as missing unless PROBE succeeds
missing=()
needs() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}

needs_services() {
  needs rabbitmq-server test -x /usr/lib/rabbitmq/bin/rabbitmq-server
  needs postgresql test -x "$(postgres_bin)/postgres"
  needs python3 test -x "$system_python"
  needs python3-aiosmtpd "$system_python" -c 'import aiosmtpd'
  needs python3-pika "$system_python" -c 'import pika'
  needs python3-cryptography "$system_python" -c 'import cryptography'
  needs python3-dkim "$system_python" -c 'import dkim'
  needs python3-nacl "$system_python" -c 'import nacl'
  needs spamassassin command -v spamassassin
  needs openssl command -v openssl
  needs curl command -v curl
  needs procps command -v ps
  needs bsdutils command -v script
}

needs_rust() {
  command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null || die "no cargo found: a Rust toolchain is needed, see https://rustup.rs"
  needs build-essential command -v cc
  needs ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
}

# Only where it can be of use: the tree is made and entered by root.
needs_tree() {
  if ((EUID == 0)); then needs debootstrap command -v debootstrap; fi
}

install_missing() {
  ((${#missing[@]} > 0)) || return 0
  local begun as_root=()
  begun=$(now_ms)
  command -v apt-get >/dev/null || die "please install the equivalents of these Debian packages: ${missing[*]}"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "please have root run: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing with apt-get, without starting any service: ${missing[*]}"
  "${as_root[@]}" bash "$root/deploy/dev.d/install.sh" "${missing[@]}" >"$state/log/install.log" 2>&1 ||
    { tail -n 20 "$state/log/install.log" >&2; die "apt-get failed; see $state/log/install.log"; }
  missing=()
  done_in "$begun" "packages installed"
}

# python_tools NAME PINNED WHAT: what a file of pinned versions asks for, in $state/NAME; made anew whenever the file changes
python_tools() {
  local venv="$state/$1" pinned=$2 begun
  begun=$(now_ms)
  if cmp -s "$pinned" "$venv/requirements.txt"; then return; fi
  rm -rf "$venv"
  "$system_python" -m venv "$venv" &&
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$pinned" ||
    die "$3 could not be installed into $venv"
  cp "$pinned" "$venv/requirements.txt"
  done_in "$begun" "$3 installed"
}
