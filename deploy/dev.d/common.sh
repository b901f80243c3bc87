# Ground for every command of deploy/dev: where state lives, how to talk, ports, secrets, and processes that
# outlive the shell that started them. Sourced, never run.
# shellcheck shell=bash

# Decimal points and sort order must not depend on who runs this.
export LC_ALL=C.UTF-8

dev="$root/.dev"

# --- talking -------------------------------------------------------------------------------------------------

# Everything a person reads goes to stderr, so that stdout stays free for what a command prints for programs.
say() { printf '%s\n' "$*" >&2; }
die() { printf 'deploy/dev: %s\n' "$*" >&2; exit 1; }

now_ms() { local t=${EPOCHREALTIME/./}; echo $((t / 1000)); }
# Written whole or not at all, and for nobody else to read, since most of it holds passwords.
write_private() { (umask 077 && cat >"$1.new") && mv "$1.new" "$1"; }

# phase_done START TEXT: what a step of a long command took, and the processor time of its programs (of all cores; services
# not counted): whether it worked or waited. Never in a subshell, which has other children.
cpu_before=0
phase_done() {
  local cpu
  times >"$state/run/times"
  cpu=$(awk 'NR == 2 { gsub(/s/, ""); split($1, user, "m"); split($2, sys, "m")
    printf "%.2f", user[1] + sys[1] + (user[2] + sys[2]) / 60 }' "$state/run/times")
  say "== $2: $(minutes_since "$1") min, $(awk "BEGIN { printf \"%.2f\", $cpu - $cpu_before }") min of processor time"
  cpu_before=$cpu
}

seconds_since() { local ms=$(($(now_ms) - $1)); printf '%d.%d' $((ms / 1000)) $((ms % 1000 / 100)); }
minutes_since() { local ms=$(($(now_ms) - $1)); printf '%d.%02d' $((ms / 60000)) $((ms % 60000 * 100 / 60000)); }

# done_in START TEXT: one finished step, with what it took.
done_in() { printf '  %6s s  %s\n' "$(seconds_since "$1")" "$2" >&2; }

# --- where state lives ---------------------------------------------------------------------------------------

# PostgreSQL and RabbitMQ refuse root or should not have it, so root lends them a user; the files must then lie
# where that user can reach them. A path with spaces breaks RabbitMQ's own scripts.
service_user() { # service_user WANTED
  if ((EUID != 0)); then id -un; elif id "$1" >/dev/null 2>&1; then echo "$1"; else echo nobody; fi
}

drop_root() { # drop_root USER COMMAND...: runs COMMAND as USER when we are root, as ourselves otherwise
  local user=$1
  shift
  if ((EUID == 0)) && [[ $user != root ]]; then
    setpriv --reuid="$user" --regid="$(id -gn "$user")" --clear-groups "$@"
  else
    "$@"
  fi
}

choose_state_dir() {
  mkdir -p "$dev"
  [[ $(stat -c %u "$dev") == "$EUID" ]] ||
    die "$dev belongs to $(stat -c %U "$dev"): run as that user, or remove it first"
  chmod 755 "$dev"
  state="$dev"
  if [[ $dev == *[^A-Za-z0-9_./-]* ]] || { ((EUID == 0)) && ! drop_root nobody test -x "$dev"; }; then
    state="/var/tmp/postrider-dev-$EUID-$(cksum <<<"$dev" | cut -d' ' -f1)"
    mkdir -p -m 755 "$state"
    [[ -d $state && ! -L $state && $(stat -c %u "$state") == "$EUID" ]] || die "$state is not ours"
  fi
  mkdir -p "$state"/{run,log,ports}
  mkdir -p -m 700 "$state/secrets"
}

# lock NAME: one command at a time may start or stop NAME.
# Descriptors 7 to 9 are locks and never handed to a service, which would hold them for as long as it runs.
lock() {
  exec 9>"$state/run/$1.lock"
  flock -n 9 || { say "waiting for another deploy/dev ($1)..."; flock 9; }
}
unlock() { exec 9>&-; }

# --- secrets and ports ---------------------------------------------------------------------------------------

secret() { # secret NAME [BYTES]: made once, then always the same, also for services that start side by side
  local file="$state/secrets/$1" made
  if [[ ! -s $file ]]; then
    made=$(umask 077 && mktemp "$file.XXXXXX")
    od -An -vtx1 -N"${2:-12}" /dev/urandom | tr -d ' \n' >"$made"
    # Whoever links first has made it; what the others made is forgotten.
    ln "$made" "$file" 2>/dev/null || true
    rm -f "$made"
  fi
  cat "$file"
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

port() { cat "$state/ports/$1"; }

# pick_port NAME: keeps the port of last time while nobody else has taken it. Below 32768, so that no outgoing
# connection sits on it by chance; from a start that differs per checkout, so that two do not compete.
pick_port() {
  local file="$state/ports/$1" candidate
  if [[ -s $file ]] && port_is_free "$(cat "$file")"; then return; fi
  rm -f "$file"
  candidate=$((20000 + $(cksum <<<"$state" | cut -d' ' -f1) % 9000))
  while grep -qsx "$candidate" "$state"/ports/* || ! port_is_free "$candidate"; do candidate=$((candidate + 1)); done
  echo "$candidate" >"$file"
}

# --- processes -----------------------------------------------------------------------------------------------

# Every process carries this mark in its environment. A pid file alone proves nothing after a reboot or a crash;
# a pid whose environment holds the mark is ours, and only such a one is ever signalled.
mark() { echo "DEV_SERVICE=$1@$state"; }

spawn() { # spawn NAME USER [VAR=value...] COMMAND...: starts it in its own session with a clean environment
  local name=$1 user=$2 drop=()
  shift 2
  if ((EUID == 0)) && [[ $user != root ]]; then
    drop=(setpriv --reuid="$user" --regid="$(id -gn "$user")" --clear-groups)
  fi
  : >"$state/log/$name.log"
  setsid env -i "$(mark "$name")" PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/ \
    LANG=C.UTF-8 "${drop[@]}" env --chdir=/ "$@" </dev/null >>"$state/log/$name.log" 2>&1 7>&- 8>&- 9>&- &
  local pid=$! tries=0
  disown "$pid" # a later `wait` is for jobs, not for services
  echo "$pid" >"$state/run/$name.pid"
  # It is known by its mark only once it has become the command; until then it is a copy of this shell.
  until is_ours "$name" "$pid" || [[ ! -d /proc/$pid ]] || ((++tries > 100)); do sleep 0.02; done
}

is_ours() { # is_ours NAME PID
  [[ -n $2 ]] && tr '\0' '\n' 2>/dev/null <"/proc/$2/environ" | grep -qxF -e "$(mark "$1")"
}

pid_of() { # pid_of NAME: prints the pid if the process lives and is ours
  local pid
  pid=$(cat "$state/run/$1.pid" 2>/dev/null) || return 1
  is_ours "$1" "$pid" && echo "$pid"
}

alive() { pid_of "$1" >/dev/null; }

is_gone() { # one that only waits to be reaped holds nothing any more
  [[ ! -d /proc/$1 || $(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) == Z ]]
}

stop() { # stop NAME [SECONDS [SIGNAL]]: asks, waits, then insists
  local name=$1 limit=${2:-20} pid tries=0
  if ! pid=$(pid_of "$name"); then
    rm -f "$state/run/$name.pid"
    return 0
  fi
  kill -s "${3:-TERM}" "$pid" 2>/dev/null || true
  while is_ours "$name" "$pid"; do
    if ((++tries == limit * 10)); then
      # It leads a group of its own, see spawn; a broker's pid is that of a child of the leader.
      kill -KILL -- "-$(ps -o pgid= -p "$pid" | tr -d ' ')" 2>/dev/null || true
    fi
    sleep 0.1
  done
  # A process on its way out has no environment any more, but what it held it may still hold.
  tries=0
  until is_gone "$pid" || ((++tries > 50)); do sleep 0.1; done
  rm -f "$state/run/$name.pid"
}

wait_for() { # wait_for NAME SECONDS PROBE...: until PROBE succeeds; a process that died ends the wait
  local name=$1 limit=$2 begun
  shift 2
  begun=$(now_ms)
  until "$@" >/dev/null 2>&1; do
    if ! alive "$name" || (($(now_ms) - begun > limit * 1000)); then
      say "$name did not come up; the end of $state/log/$name.log:"
      tail -n 20 "$state/log/$name.log" >&2 || true
      return 1
    fi
    sleep 0.1
  done
}
