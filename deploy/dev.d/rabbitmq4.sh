# RabbitMQ 4.0, which distributions of today may not carry yet: a Debian 13 tree of its own, entered with chroot.
# shellcheck shell=bash

tree="$state/trixie"

# Mounts live in a namespace that ends with the process that made it: nothing to unmount, and nothing that a careless
# `rm -r` of the tree could reach.
privately=(unshare --mount --propagation private)

rabbit4_obstacle() { # prints why 4.0 cannot be had here; nothing when it can
  if ((EUID != 0)); then
    echo "RabbitMQ 4.0 needs root, to make and enter a Debian 13 tree"
  elif [[ ! -e $tree ]] && ! command -v debootstrap >/dev/null; then
    echo "there is no debootstrap to make a Debian 13 tree with"
  elif ! "${privately[@]}" true 2>/dev/null; then
    echo "this machine does not allow mount namespaces, which the Debian 13 tree needs"
  fi
}

# The machine's own Debian mirror, if it has one; debootstrap knows a default.
debian_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
    'Component: main' 2>/dev/null | grep -m 1 -E '^https?://' || true
}

apt_proxy() { local proxy=; eval "$(apt-config shell proxy Acquire::http::Proxy)"; echo "$proxy"; }

tree_make() { # one at a time, whoever asks; a tree half made by an interrupted run is thrown away
  exec 7>"$state/trixie.lock"
  flock 7
  [[ ! -e $tree ]] || return 0
  local begun partial="$tree.partial" mirror proxy
  begun=$(now_ms)
  rm -rf --one-file-system "$partial"
  mirror=$(debian_mirror)
  proxy=$(apt_proxy)
  if ! {
    # In two stages, so that a policy against starting services is in place before any package is set up.
    env ${proxy:+http_proxy="$proxy"} "${privately[@]}" debootstrap --force-check-gpg --foreign --variant=minbase \
      --include=rabbitmq-server trixie "$partial" ${mirror:+"$mirror"} &&
      printf '#!/bin/sh\nexit 101\n' >"$partial/usr/sbin/policy-rc.d" &&
      chmod 755 "$partial/usr/sbin/policy-rc.d" &&
      "${privately[@]}" chroot "$partial" /debootstrap/debootstrap --second-stage &&
      echo '127.0.0.1 localhost' >"$partial/etc/hosts" &&
      rm -rf "$partial"/var/cache/apt/archives/*.deb &&
      mv "$partial" "$tree"
  } </dev/null >"$state/log/trixie.log" 2>&1; then
    tail -n 5 "$state/log/trixie.log" >&2
    say "debootstrap could not make the Debian 13 tree for RabbitMQ 4.0; see $state/log/trixie.log"
    rm -rf --one-file-system "$partial"
    return 1
  fi
  done_in "$begun" "Debian 13 tree for RabbitMQ 4.0"
}

# What to put before a command to run it inside the tree.
# shellcheck disable=SC2016 # expanded by the inner shell, inside the namespace
rabbit4_enter=("${privately[@]}" sh -c '
  tree=$1; shift
  mount --rbind /proc "$tree/proc" && mount --rbind /dev "$tree/dev" || exit 1
  exec chroot --userspec=rabbitmq:rabbitmq "$tree" "$@"' enter "$tree")

rabbit4_start() {
  alive rabbit4 && return
  broker_start rabbit4 "$tree" root "$(stat -c %u:%g "$tree/var/lib/rabbitmq")" /srv/rabbit "${rabbit4_enter[@]}"
}
