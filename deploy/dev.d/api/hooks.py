"""What the generator of requests puts where a description can only say how a text is made.

A description knows that a cursor or an address is a text; that the daemon must take it is known here. Ids are drawn half
the time from what there is, so that routes for one thing are not only asked for nothing.
"""

import base64
import datetime
import json
import os
import string
import uuid

import requests
import schemathesis
from hypothesis import strategies as st

with open(os.environ["API_TEST_SEEDS"], encoding="utf-8") as file:
    SEEDS = json.load(file)
# Whose token this run shows; nothing: none.
TOKEN = os.environ.get("API_TEST_TOKEN")


def known_or(name, other):
    """Something that there is of this name, or anything else of its shape."""
    return st.one_of(st.sampled_from(SEEDS[name]), other) if SEEDS.get(name) else other


def years(first, last):
    return st.datetimes(datetime.datetime(first, 1, 1), datetime.datetime(last, 12, 31), timezones=st.just(datetime.UTC))


def text(moment):
    return moment.isoformat().replace("+00:00", "Z")


uuids = st.uuids().map(str)
words = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
addresses = st.builds(lambda local, domain: f"{local}@{domain}.example", words, words)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
entries = st.builds(
    lambda at, hashed, reason: f"{at}/{hashed}/{reason}/",
    st.integers(0, 2_000_000_000_000_000),
    hashes,
    st.sampled_from(["complaint", "hard_bounce", "unsubscribe", "operator"]),
)
cursors = entries.map(lambda entry: base64.urlsafe_b64encode(entry.encode()).decode().rstrip("="))

schemathesis.openapi.format("uuid", known_or("uuid", uuids))
schemathesis.openapi.format("email", known_or("email", addresses))
schemathesis.openapi.format("suppression-id", known_or("suppression-id", hashes))
schemathesis.openapi.format("suppression-cursor", known_or("suppression-cursor", cursors))
schemathesis.openapi.format(
    "dead-letter-cursor",
    known_or("dead-letter-cursor", st.builds(lambda at, of: f"{at}.{of}", st.integers(0, 2_000_000_000_000_000), uuids)),
)
schemathesis.openapi.format("date-or-time", st.one_of(years(1970, 2999).map(text), years(1970, 2999).map(lambda at: text(at)[:10])))
# Only where something ends is a time asked for.
schemathesis.openapi.format("date-time", years(2100, 2900).map(text))

lines = st.lists(st.tuples(addresses, st.sampled_from(["", "operator", "unsubscribe"])), max_size=5)
files = lines.map(lambda rows: "address,reason\n" + "".join(f"{address},{reason}\n" for address, reason in rows))
schemathesis.openapi.media_type("text/csv", files.map(str.encode))


@schemathesis.hook
def before_load_schema(_context, raw_schema):
    """Where files are generated, an example that is text cannot be sent."""
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            operation.get("requestBody", {}).get("content", {}).get("text/csv", {}).pop("example", None)


GUARDED = set()


@schemathesis.check
def tokens_are_asked_for(_context, response, case):
    """Without a token, or with a wrong one, what was answered is not; and a right one never has to wait."""
    shown = response.request.headers.get("Authorization")
    if TOKEN and shown == f"Bearer {TOKEN}":
        assert response.status_code != 429, "a right token had to wait"
    label = case.operation.label
    if "/api/" not in label or not 200 <= response.status_code < 300 or label in GUARDED:
        return
    for token, expected in ((None, (401,)), ("Bearer a-token-that-nobody-has", (401, 429))):
        request = response.request.copy()
        request.headers.pop("Authorization", None)
        if token:
            request.headers["Authorization"] = token
        with requests.Session() as session:
            status = session.send(request, timeout=30).status_code
        assert status in expected, f"{status} with {'a wrong token' if token else 'no token'}"
    GUARDED.add(label)
