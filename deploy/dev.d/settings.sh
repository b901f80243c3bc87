# What the daemon, the tests and a person's shell need to know of the services, as lines to source.
# shellcheck shell=bash

# Prints one line for a shell to source; the value is quoted so that anything may be in it.
export_line() { printf 'export %s=%q\n' "$1" "$2"; }

# test_settings BROKER: for the tests, which make a virtual host and a database of their own each.
test_settings() {
  export_line TEST_AMQP_URL "$(amqp_url "$1")"
  export_line TEST_RABBITMQ_API "$(rabbit_api "$1")"
  export_line TEST_DATABASE_URL "$(database_url postgres)"
  export_line TEST_SMTP_KEEPER "127.0.0.1:$(port smtp)"
  export_line TEST_SMTP_KEEPER_TLS "127.0.0.1:$(port smtp-tls)"
  export_line TEST_SMTP_USER dev
  export_line TEST_SMTP_PASSWORD "$(secret smtp)"
  export_line TEST_SMTP_CA "$state/tls/ca.pem"
  export_line TEST_AMQPS_URL "$(amqps_url "$1")"
  export_line TEST_CLIENT_CERT "$state/tls/client.pem"
  export_line TEST_CLIENT_KEY "$state/tls/client.key"
  export_line TEST_MAIL_DIR "$state/mail"
  # For tests that need a service to go away: CONTROL service NAME stop|start|restart|alarm-on|alarm-off
  export_line TEST_SERVICE_CONTROL "$root/deploy/dev"
  export_line TEST_RABBITMQ_SERVICE "$1"
  if has_browser; then
    export_line TEST_CHROMEDRIVER "$(command -v chromedriver)"
    export_line TEST_AXE "$axe_file"
  fi
  if [[ -d $node_modules ]] && command -v node >/dev/null; then
    export_line TEST_NODE "$(command -v node)"
    export_line TEST_NODE_MODULES "$node_modules"
  fi
  export_line SQLX_OFFLINE true
}

# daemon_settings BROKER: for `postrider`, in the names of its own documentation.
daemon_settings() {
  export_line AMQP_URL "$(amqp_url "$1")"
  export_line DATABASE_URL "$(database_url postrider)"
  export_line SMTP_HOST 127.0.0.1
  export_line SMTP_PORT "$(port smtp)"
  export_line SMTP_USE_TLS false
  export_line SMTP_FROM_EMAIL noreply@rgz.bj
  export_line SMTP_FROM_NAME "RGZ Notifications"
  export_line SMTP_REPLY_TO support@rgz.bj
  export_line ADMIN_ADDR "127.0.0.1:$(port admin)"
  export_line WEBHOOK_ADDR "127.0.0.1:$(port webhook)"
  # Nothing answers at this name; on this machine its links work at WEBHOOK_ADDR.
  export_line EMAIL_PUBLIC_URL https://mail.rgz.example
  # For curl; the daemon itself knows the list only.
  export_line DEV_TOKEN "$(secret admin-token 24)"
  export_line ADMIN_TOKENS "$(printf 'dev:admin:%s,dev-operator:operator:%s,dev-viewer:viewer:%s' \
    "$(secret admin-token 24)" "$(secret operator-token 24)" "$(secret viewer-token 24)")"
  export_line EMAIL_HASH_KEY "$(secret hash-key 32)"
  export_line EMAIL_TEMPLATES_DIR "$root/templates"
  export_line EMAIL_SUPPORT_EMAIL support@rgz.bj
  export_line EMAIL_P0_SOURCES incident
  export_line LOG_FORMAT text
  # A process that may not be dumped hides its environment, by whose mark it is known here.
  export_line POSTRIDER_CORE_DUMPS on
}

write_test_settings() { # write_test_settings BROKER
  test_settings "$1" | write_private "$dev/$(settings_name "$1").env"
}

settings_name() { if [[ $1 == rabbit4 ]]; then echo services-4; else echo services; fi; }

write_daemon_settings() { # write_daemon_settings BROKER
  {
    echo "# Settings of the daemon that deploy/dev runs. Use: source ${dev@Q}/env"
    daemon_settings "$1"
    # shellcheck disable=SC2016 # $PATH is for the shell that sources this
    printf 'export PATH=%q:"$PATH"\n' "$(target_dir)/debug"
  } | write_private "$dev/env"
}

# with_settings COMMAND...: in the environment of the daemon and nothing else, so that settings exported in a
# developer's own shell do not find their way in.
with_settings() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  env -i HOME="$HOME" PATH="$PATH" LANG=C.UTF-8 TERM="${TERM:-dumb}" RUST_BACKTRACE=1 \
    bash -c '. "$0" && exec "$@"' "$dev/env" "$@"
}
