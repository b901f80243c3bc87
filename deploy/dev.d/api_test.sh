# The API tried by a generator of requests, with every role's token and with none.
# shellcheck shell=bash

# Made anew whenever the pinned versions change.
api_test_tools() {
  local pinned="$root/deploy/dev.d/api/requirements.txt" venv="$state/api-test" begun
  begun=$(now_ms)
  if ! cmp -s "$pinned" "$venv/requirements.txt"; then
    rm -rf "$venv"
    "$system_python" -m venv "$venv" &&
      "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$pinned" ||
      die "the generator of requests could not be installed into $venv"
    cp "$pinned" "$venv/requirements.txt"
    done_in "$begun" "generator of requests installed"
  fi
}

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

# api_test_as ROLE TOKEN EXAMPLES ARGUMENT...
api_test_as() {
  local role=$1 token=$2 examples=$3 header=()
  shift 3
  [[ -z $token ]] || header=(--header "Authorization: Bearer $token")
  say "== with ${role}"
  (
    cd "$root/deploy/dev.d/api"
    env API_TEST_SEEDS="$state/run/api-test.json" HYPOTHESIS_STORAGE_DIRECTORY="$state/run/hypothesis" \
      PYTHONDONTWRITEBYTECODE=1 \
      "$state/api-test/bin/schemathesis" --config-file schemathesis.toml run "$state/run/openapi.json" \
      --url "http://127.0.0.1:$(port admin)" --max-examples "$examples" --no-color "${header[@]}" "$@"
  )
}
