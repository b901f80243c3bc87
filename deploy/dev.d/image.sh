# The image without an engine: the Dockerfile's steps on a bare Debian tree, and what came out of them at work.
# shellcheck shell=bash

# image_replay FOLDER: the last stage ends up in FOLDER/image
image_replay() {
  local folder=$1
  # Its mounts are of the same file system, and what they lead to would go as well.
  if grep -q " $folder/" /proc/self/mounts; then die "unmount what is below $folder first: findmnt"; fi
  rm -rf --one-file-system "$folder"
  "$system_python" "$root/deploy/docker/replay.py" "$folder" REVISION="$(git rev-parse HEAD)" 8>&- ||
    die "the Dockerfile's steps failed"
}

# in_image TREE ARGUMENT...: the program as an engine runs it: its tree, its user, its templates; /proc and /dev lent by this
# machine, and a database of its own
in_image() {
  local tree=$1
  shift
  # shellcheck disable=SC2016 # expanded by the inner shell
  with_settings env EMAIL_TEMPLATES_DIR=/usr/share/postrider/templates DATABASE_URL="$(database_url postrider_image)" \
    unshare --mount sh -ec '
    mount --rbind /proc "$0/proc"
    mount --rbind /dev "$0/dev"
    exec chroot --userspec=65532:65532 "$0" /usr/local/bin/postrider "$@"' "$tree" "$@"
}

# image_try TREE: from an empty database to a mail at the relay and a clean end, by nothing but the image's own program
image_try() {
  local tree=$1 to job daemon begun status=0
  to="image-$(od -An -tx1 -N4 /dev/urandom | tr -d ' \n')@example.bj"
  mkdir -p "$tree"/{proc,dev}
  in_image "$tree" --version
  in_image "$tree" migrate
  in_image "$tree" templates sync
  in_image "$tree" check
  in_image "$tree" run 7>&- 8>&- >"$state/log/image.log" 2>&1 &
  job=$!
  begun=$(now_ms)
  until in_image "$tree" health --ready >/dev/null 2>&1; do
    if ! kill -0 "$job" 2>/dev/null || (($(now_ms) - begun > 30000)); then
      in_image "$tree" health --ready || true
      pkill -P "$job" || true
      tail -n 20 "$state/log/image.log" >&2
      die "the image's daemon is not ready"
    fi
    sleep 0.2
  done
  # Each command between this shell's copy of itself and the program has become the next.
  daemon=$(pgrep -P "$job")
  done_in "$begun" "the daemon is ready, as user $(sed -n 's/^Uid:[[:space:]]*\([0-9]*\).*/\1/p' "/proc/$daemon/status")"
  begun=$(now_ms)
  in_image "$tree" publish --template support_ticket_created --to "$to" --sample
  until grep -qs "^X-Envelope-To: $to" "$state"/mail/*.eml; do
    if (($(now_ms) - begun > 30000)); then
      pkill -P "$job" || true
      tail -n 20 "$state/log/image.log" >&2
      die "no mail to $to arrived"
    fi
    sleep 0.2
  done
  done_in "$begun" "a mail went through it"
  in_image "$tree" health
  begun=$(now_ms)
  kill -TERM "$daemon"
  wait "$job" || status=$?
  ((status == 0)) || die "the image's daemon ended with $status"
  done_in "$begun" "it ended by SIGTERM, with 0"
}
