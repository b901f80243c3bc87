# The API tried by a generator of requests, with every role's token and with none.
# shellcheck shell=bash

# Something of every kind, and the description as the daemon gives it.
api_test_fill() {
  local begun
  begun=$(now_ms)
  with_settings "$system_python" "$root/deploy/dev.d/api/fill.py" --templates "$root/templates" \
    --seeds "$state/run/api-test.json"
  # shellcheck disable=SC2016 # expanded by the inner shell
  with_settings bash -c 'curl -sf -H "Authorization: Bearer $DEV_TOKEN" "http://$ADMIN_ADDR/api/v1/openapi.json"' \
    >"$state/run/openapi.json"
  done_in "$begun" "mails, dead letters and suppressions made"
}

# api_test_known TOKEN...: shows them, before wrong ones are tried from the same address; what the daemon knows never waits.
api_test_known() {
  local token
  for token in "$@"; do
    curl -sf --retry 2 -o /dev/null -H "Authorization: Bearer $token" "http://127.0.0.1:$(port admin)/api/v1/openapi.json" ||
      die "the daemon does not take a token of its own"
  done
}

# api_test_as ROLE TOKEN EXAMPLES ARGUMENT...
api_test_as() {
  local role=$1 token=$2 examples=$3 header=()
  shift 3
  [[ -z $token ]] || header=(--header "Authorization: Bearer $token")
  say "== with ${role}"
  (
    cd "$root/deploy/dev.d/api"
    env API_TEST_SEEDS="$state/run/api-test.json" API_TEST_TOKEN="$token" HYPOTHESIS_STORAGE_DIRECTORY="$state/run/hypothesis" \
      PYTHONDONTWRITEBYTECODE=1 \
      "$state/api-test/bin/schemathesis" --config-file schemathesis.toml run "$state/run/openapi.json" \
      --url "http://127.0.0.1:$(port admin)" --max-examples "$examples" --no-color "${header[@]}" "$@"
  )
}
