# The daemon: built, its database made ready, run in the background.
# shellcheck shell=bash

target_dir() { echo "${CARGO_TARGET_DIR:-$root/target}"; }

# The same settings and the same binary need no restart.
daemon_stamp() {
  { cat "$dev/env"; stat -c '%i %s %Y' "$(target_dir)/debug/postrider"; echo "${RUST_LOG:-}"; } | cksum
}

daemon_ready() { curl -sf -m 2 -o /dev/null "http://127.0.0.1:$(port admin)/readyz"; }

# database_ready BROKER: settings written, schema and templates in place; needs PostgreSQL only
database_ready() {
  local begun step
  begun=$(now_ms)
  until postgres_psql postgres -c 'select 1' >/dev/null 2>&1; do
    (($(now_ms) - begun < 60000)) || die "PostgreSQL does not answer; see $state/log/postgres.log"
    sleep 0.1
  done
  write_daemon_settings "$1"
  postgres_create postrider
  for step in migrate "templates sync"; do
    # shellcheck disable=SC2086 # two words
    with_settings postrider $step >"$state/log/migrate.log" 2>&1 ||
      { tail -n 20 "$state/log/migrate.log" >&2; die "postrider $step failed"; }
  done
  done_in "$begun" "database migrated, templates loaded"
}

daemon_start() {
  local begun
  begun=$(now_ms)
  lock daemon
  if ! alive daemon || [[ $(daemon_stamp) != "$(cat "$state/run/daemon.stamp" 2>/dev/null)" ]]; then
    stop daemon 60
    # shellcheck disable=SC2016 # expanded by the inner shell
    spawn daemon "$(id -un)" ${RUST_LOG:+RUST_LOG="$RUST_LOG"} RUST_BACKTRACE=1 \
      bash -c '. "$0" && exec postrider run' "$dev/env"
    daemon_stamp >"$state/run/daemon.stamp"
  fi
  wait_for daemon 30 daemon_ready || {
    curl -s -m 2 "http://127.0.0.1:$(port admin)/readyz" >&2 || true
    die "the daemon is not ready"
  }
  unlock
  done_in "$begun" "daemon ready"
}
