# The private services: RabbitMQ of the distribution, PostgreSQL, and an SMTP server that keeps what it gets.
# Each *_start is idempotent: what runs is left alone, what died is started again on the same data.
# shellcheck shell=bash

# --- RabbitMQ ------------------------------------------------------------------------------------------------

# RabbitMQ takes its settings from a dozen places, all of them shared by the machine unless named here: node name,
# cookie (in HOME), the name service epmd, and every directory. `home` is the path as the broker sees it.
rabbit_settings() { # rabbit_settings NAME BASE HOME -> array rabbit_env
  local name=$1 base=$2 home=$3
  rabbit_env=(
    HOME="$home"
    ERL_EPMD_PORT="$(port "$name-epmd")" ERL_EPMD_ADDRESS=127.0.0.1
    RABBITMQ_NODENAME="postrider-$name@localhost"
    RABBITMQ_CONF_ENV_FILE="$home/none"
    RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf"
    RABBITMQ_CONFIG_FILES="$home/conf.d"
    RABBITMQ_ADVANCED_CONFIG_FILE="$home/none.config"
    RABBITMQ_GENERATED_CONFIG_DIR="$home/generated"
    RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins"
    RABBITMQ_PLUGINS_EXPAND_DIR="$home/plugins"
    RABBITMQ_MNESIA_BASE="$home/data"
    RABBITMQ_LOG_BASE="$home/log"
    RABBITMQ_PID_FILE="$home/pid"
    RABBITMQ_DIST_PORT="$(port "$name-dist")"
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} $(rabbit_code_path "$base")"
  )
}

# Erlang looks for each module in a hundred directories in turn: fifty thousand failed lookups, half of the time a
# start takes. The directories that hold most of what a start needs are put first.
rabbit_code_path() { # rabbit_code_path BASE
  local app path found=()
  for app in rabbit rabbit_common rabbitmq_management kernel stdlib inets compiler ssl ra xmerl mnesia cowboy cowlib \
    amqp_client cuttlefish ranch rabbitmq_management_agent rabbitmq_prelaunch osiris sasl tools public_key; do
    for path in "$1"/usr/lib/{rabbitmq/lib/*/plugins,erlang/lib}/"$app"-[0-9]*/ebin; do
      if [[ -d $path ]]; then found+=("${path#"$1"}"); fi
    done
  done
  if ((${#found[@]} > 0)); then echo "-pa ${found[*]}"; fi
}

# rabbit_home NAME OWNER DIRECTORY HOME: everything the broker reads before it starts; HOME is DIRECTORY as it sees it
rabbit_home() {
  local name=$1 owner=$2 home=$3 seen=$4
  mkdir -p "$home"/{conf.d,data,log,generated,tls}
  cp "$state"/tls/{ca.pem,server.pem,server.key} "$home/tls/"
  cat >"$home/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$(port "$name-amqp")
listeners.ssl.1 = 127.0.0.1:$(port "$name-amqps")
ssl_options.cacertfile = $seen/tls/ca.pem
ssl_options.certfile = $seen/tls/server.pem
ssl_options.keyfile = $seen/tls/server.key
# Whoever shows a certificate must have one of ours; it may stand for user and password.
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
management.tcp.ip = 127.0.0.1
management.tcp.port = $(port "$name-http")
default_user = dev
default_pass = $(secret rabbit)
default_user_tags.administrator = true
disk_free_limit.absolute = 100MB
# Tests look at queue depths: the default of five seconds would make them wait for it.
collect_statistics_interval = 1000
CONF
  echo '[rabbitmq_auth_mechanism_ssl,rabbitmq_management].' >"$home/enabled_plugins"
  rm -f "$home/.erlang.cookie" "$home/pid"
  (umask 077 && secret cookie >"$home/.erlang.cookie")
  chmod 400 "$home/.erlang.cookie"
  if ((EUID == 0)); then chown -R "$owner" "$home"; fi
}

rabbit_answers() { # rabbit_answers NAME: the HTTP API knows us, and AMQP is being listened to
  curl -sf -m 2 -o /dev/null -u "dev:$(secret rabbit)" "http://127.0.0.1:$(port "$1-http")/api/overview" &&
    ! port_is_free "$(port "$1-amqp")"
}

rabbit_version() { # as the running broker tells it
  curl -sf -m 5 -u "dev:$(secret rabbit)" "http://127.0.0.1:$(port "$1-http")/api/overview" |
    sed -n 's/.*"rabbitmq_version":"\([^"]*\)".*/\1/p'
}

# The shell around the broker wrote the first pid; from here on it is the broker's own, which stops cleanly on TERM.
rabbit_adopt_pid() { # rabbit_adopt_pid NAME HOME
  local pid
  pid=$(cat "$2/pid") && is_ours "$1" "$pid" && echo "$pid" >"$state/run/$1.pid"
}

# broker_start NAME BASE USER OWNER HOME RUNNER...: BASE is the root that the broker sees (empty: ours), HOME its
# directory as seen from there, RUNNER what to put before its commands.
broker_start() {
  local name=$1 base=$2 user=$3 owner=$4 home=$5 begun
  shift 5
  begun=$(now_ms)
  stop "$name-epmd"
  rabbit_home "$name" "$owner" "$base$home" "$home"
  rabbit_settings "$name" "$base" "$home"
  # epmd would be started by the broker as well, but then nobody would stop it.
  spawn "$name-epmd" "$user" "${rabbit_env[@]}" "$@" epmd
  spawn "$name" "$user" "${rabbit_env[@]}" "$@" /usr/lib/rabbitmq/bin/rabbitmq-server
  wait_for "$name" 90 rabbit_answers "$name" || return 1
  rabbit_adopt_pid "$name" "$base$home"
  done_in "$begun" "RabbitMQ $(rabbit_version "$name") on port $(port "$name-amqp")"
}

rabbit_start() {
  alive rabbit && return
  local user
  user=$(service_user rabbitmq)
  broker_start rabbit "" "$user" "$user" "$state/rabbit"
}

# The memory alarm, which blocks everybody who publishes: a limit that is always passed, and the default again.
rabbit_alarm() { # rabbit_alarm NAME alarm-on|alarm-off
  local limit=0.4
  if [[ $2 == alarm-on ]]; then limit=0.00001; fi
  rabbit_control "$1" set_vm_memory_high_watermark "$limit" >"$state/log/$1-control.log" 2>&1 ||
    { tail -n 5 "$state/log/$1-control.log" >&2; return 1; }
}

rabbit_control() { # rabbit_control NAME COMMAND...: rabbitmqctl with the private node's settings
  local name=$1 user
  shift
  case $name in
    rabbit)
      user=$(service_user rabbitmq)
      rabbit_settings rabbit "" "$state/rabbit"
      (cd / && drop_root "$user" env -i PATH="$PATH" LANG=C.UTF-8 "${rabbit_env[@]}" \
        /usr/lib/rabbitmq/bin/rabbitmqctl "$@")
      ;;
    rabbit4)
      rabbit_settings rabbit4 "$tree" /srv/rabbit
      # shellcheck disable=SC2154 # of rabbitmq4.sh
      env -i PATH="$PATH" LANG=C.UTF-8 "${rabbit_env[@]}" "${rabbit4_enter[@]}" \
        /usr/lib/rabbitmq/bin/rabbitmqctl "$@"
      ;;
  esac
}

amqps_url() { echo "amqps://dev:$(secret rabbit)@localhost:$(port "$1-amqps")"; }
amqp_url() { echo "amqp://dev:$(secret rabbit)@127.0.0.1:$(port "$1-amqp")"; }
rabbit_api() { echo "http://dev:$(secret rabbit)@127.0.0.1:$(port "$1-http")"; }

# --- PostgreSQL ----------------------------------------------------------------------------------------------

# The newest server of the distribution; a `postgres` elsewhere on the PATH may be anything.
postgres_bin() { printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -V | tail -n 1; }

postgres_psql() { # postgres_psql DATABASE ARGUMENT...
  local database=$1
  shift
  PGPASSWORD=$(secret postgres) PGCONNECT_TIMEOUT=2 "$(postgres_bin)/psql" -X -q -v ON_ERROR_STOP=1 \
    -h 127.0.0.1 -p "$(port postgres)" -U postrider -d "$database" "$@"
}

# In plain, as one would on one machine: TLS is for the tests that are about it.
database_url() { echo "postgres://postrider:$(secret postgres)@127.0.0.1:$(port postgres)/$1?sslmode=disable"; }

# TLS, and a user whom a certificate lets in; also for a server that was started before, since a reload is enough.
postgres_tls() {
  local user data="$state/postgres"
  [[ ! $data/server.crt -nt $state/tls/server.pem ]] || return 0
  user=$(service_user postgres)
  install -m 644 "$state/tls/ca.pem" "$data/root.crt"
  (umask 077 && cat "$state/tls/server.key" >"$data/server.key")
  grep -q '^hostssl.* cert$' "$data/pg_hba.conf" ||
    sed -i '1i hostssl all postrider_certificate 127.0.0.1/32 cert' "$data/pg_hba.conf"
  install -m 644 "$state/tls/server.pem" "$data/server.crt"
  if ((EUID == 0)); then chown "$user" "$data"/{root.crt,server.key,server.crt,pg_hba.conf}; fi
  postgres_psql postgres -c "alter system set ssl_ca_file = 'root.crt'" -c 'alter system set ssl = on' \
    -c 'select pg_reload_conf()' >/dev/null
}

postgres_start() {
  if alive postgres; then postgres_tls; return; fi
  local begun user bin data="$state/postgres"
  begun=$(now_ms)
  user=$(service_user postgres)
  bin=$(postgres_bin)
  if [[ ! -s $data/PG_VERSION ]]; then
    rm -rf "$data"
    mkdir -m 700 "$data"
    if ((EUID == 0)); then chown "$user" "$data"; fi
    local password="$state/run/postgres.password"
    (umask 077 && secret postgres >"$password")
    if ((EUID == 0)); then chown "$user" "$password"; fi
    # From a directory that the lent user may enter.
    (cd / && drop_root "$user" "$bin/initdb" -D "$data" -U postrider -E UTF8 --locale=C.UTF-8 \
      --auth=scram-sha-256 --pwfile="$password" --no-sync >"$state/log/initdb.log" 2>&1) ||
      { tail -n 20 "$state/log/initdb.log" >&2; return 1; }
    rm -f "$password"
  fi
  # Tests make and drop a database each, of four hundred files. ext4 without a journal passes over every inode that was freed
  # within minutes, and looks for new ones where the last were: told that directories below have nothing to do with each
  # other, it puts each database elsewhere. Other file systems refuse, and need no such hint.
  chattr +T "$data/base" 2>/dev/null || true
  # No Unix socket: its path may not be longer than a hundred characters, and nothing here needs one. Durability
  # stays on, since measurements without it would flatter.
  spawn postgres "$user" "$bin/postgres" -D "$data" -p "$(port postgres)" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= -c max_connections=400 -c shared_buffers=256MB -c jit=off -c timezone=UTC \
    -c max_wal_size=2GB -c log_min_messages=warning -c log_checkpoints=off -c log_min_error_statement=panic
  wait_for postgres 60 postgres_psql postgres -c 'select 1' || return 1
  postgres_tls || return 1
  done_in "$begun" "PostgreSQL $("$bin/postgres" -V | sed 's/[^0-9]*\([0-9.]*\).*/\1/') on port $(port postgres)"
}

postgres_create() { # postgres_create DATABASE: unless it is there
  [[ $(postgres_psql postgres -At -c "select 1 from pg_database where datname = '$1'") == 1 ]] ||
    postgres_psql postgres -c "create database \"$1\""
}

# --- SMTP ----------------------------------------------------------------------------------------------------

# python3-aiosmtpd belongs to the distribution's Python, which need not be the first on the PATH.
system_python=/usr/bin/python3

# One at a time, whoever asks.
certificates() { (exec 9>"$state/run/certificates.lock" && flock 9 && make_certificates); }

make_certificates() { # a private CA, a certificate for this machine's loopback, and one that stands for a user
  local dir="$state/tls"
  if [[ -s $dir/server.pem ]] && openssl x509 -checkend 86400 -noout -in "$dir/server.pem" >/dev/null; then
    [[ -s $dir/client.pem ]] || client_certificate
    return
  fi
  rm -rf "$dir"
  mkdir -m 755 "$dir"
  (
    umask 077
    cd "$dir"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj '/CN=postrider dev CA' \
      -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
      -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=localhost' \
      -keyout server.key -out server.csr
    printf '%s\n' 'basicConstraints=critical,CA:FALSE' 'subjectAltName=DNS:localhost,IP:127.0.0.1' \
      'extendedKeyUsage=serverAuth' >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile server.ext \
      -out server.pem
  ) >"$state/log/certificates.log" 2>&1 || { cat "$state/log/certificates.log" >&2; return 1; }
  client_certificate
}

# For the user postrider_certificate, of the broker and of the database.
client_certificate() {
  (
    umask 077
    cd "$state/tls"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=postrider_certificate' \
      -keyout client.key -out client.csr
    printf '%s\n' 'basicConstraints=critical,CA:FALSE' 'extendedKeyUsage=clientAuth' >client.ext
    openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile client.ext \
      -out client.pem
  ) >"$state/log/certificates.log" 2>&1 || { cat "$state/log/certificates.log" >&2; return 1; }
}

mail_start() {
  alive mail && return
  local begun
  begun=$(now_ms)
  mkdir -p "$state/mail"
  spawn mail "$(id -un)" MAIL_PASSWORD="$(secret smtp)" "$system_python" "$root/deploy/dev.d/mail.py" \
    --directory "$state/mail" --port "$(port smtp)" --tls-port "$(port smtp-tls)" --user dev \
    --certificate "$state/tls/server.pem" --key "$state/tls/server.key"
  wait_for mail 15 mail_answers || return 1
  done_in "$begun" "SMTP server on ports $(port smtp) (plain) and $(port smtp-tls) (STARTTLS and AUTH)"
}

mail_answers() { ! port_is_free "$(port smtp)" && ! port_is_free "$(port smtp-tls)"; }

# --- together ------------------------------------------------------------------------------------------------

service_ports() { # service_ports NAME
  local wanted
  case $1 in
    rabbit | rabbit4) wanted="$1-amqp $1-amqps $1-dist $1-epmd $1-http" ;;
    mail) wanted="smtp smtp-tls" ;;
    daemon) wanted="admin webhook" ;;
    *) wanted=$1 ;;
  esac
  for wanted in $wanted; do pick_port "$wanted"; done
}

# services_start NAME...: side by side, since each mostly waits for itself. Ports were settled by use_services.
services_start() {
  local name jobs=() failed=0
  # The tree of 4.0 can take minutes to make, which is too long to hold a lock for.
  if [[ " $* " == *" rabbit4 "* ]]; then tree_make || return 1; fi
  certificates || return 1
  for name in "$@"; do
    # One that an earlier version of this started, without TLS.
    if [[ $name == rabbit* && ! -s $state/ports/$name-amqps ]] && alive "$name"; then
      services_stop "$name"
      service_ports "$name"
    fi
    (lock "$name"; "${name}_start") &
    jobs+=($!)
  done
  for name in "${jobs[@]}"; do wait "$name" || failed=1; done
  return "$failed"
}

# A broker has closed its stores a moment after it was asked to; the five seconds that the rest of its shutdown takes
# are timers of its own, and nobody waits for them. The daemon is given its whole grace period.
services_stop() { # services_stop NAME...: side by side as well, but for the daemon, which needs the others to finish
  local name jobs=()
  if [[ " $* " == *" daemon "* ]]; then (lock daemon; stop daemon 60); fi
  for name in "$@"; do
    (
      lock "$name"
      case $name in
        rabbit | rabbit4) stop "$name" 2; stop "$name-epmd" ;;
        # Asked with TERM, PostgreSQL waits until its last client has gone.
        postgres) stop postgres 20 INT ;;
        *) stop "$name" ;;
      esac
    ) &
    jobs+=($!)
  done
  wait "${jobs[@]}"
}

# --- who needs what runs -------------------------------------------------------------------------------------

# A command stops what it has started, unless somebody asked for it to stay (`keep`) or another command is using it:
# each holds a shared lock for as long as it lives.
started=()

use_services() { # use_services NAME...: notes which of them are ours to stop, and settles their ports
  local name
  exec 8>"$state/in-use"
  flock -s 8
  # Ports are picked one after the other, so that two services never agree on one.
  lock ports
  for name in "$@"; do
    if ! alive "$name"; then
      started+=("$name")
      service_ports "$name"
    fi
  done
  unlock
}

# services_begin NAME...: in the background, since there is always something else to do meanwhile
services_begin() {
  use_services "$@"
  services_start "$@" &
  services_job=$!
}

services_end() { wait "$services_job" || die "a service did not start; see $state/log"; }

# shellcheck disable=SC2046 # one name a line
keep() { # keep NAME...: until `down`
  printf '%s\n' "$@" $(cat "$state/run/keep" 2>/dev/null) | sort -u | write_private "$state/run/keep"
}

release_services() {
  local name ours=()
  for name in "${started[@]}"; do
    grep -qsx "$name" "$state/run/keep" || ours+=("$name")
  done
  started=()
  ((${#ours[@]} > 0)) || return 0
  # The old descriptor, and with it our own share of the lock, goes when it is opened anew.
  exec 8>"$state/in-use"
  if flock -n -x 8; then
    services_stop "${ours[@]}"
  else
    say "left running, since another command uses them: ${ours[*]}"
  fi
  exec 8>&-
}
