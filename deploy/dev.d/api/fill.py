"""Fills the installation that `deploy/dev api-test` tries: something of every kind that the API shows.

Undoes what an earlier run has left, publishes mails that are sent, suppressed, refused as no request and routed nowhere, puts addresses on the suppression list
and takes one off, discards a letter; waits until all of it is settled, and writes the ids and cursors of what there is.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

import pika

API = f"http://{os.environ['ADMIN_ADDR']}/api/v1/email"
PATIENCE_SECONDS = 60


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {os.environ['DEV_TOKEN']}", "Content-Type": "application/json"}
    request = urllib.request.Request(API + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_for(what, look):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.1)
    return found


def request(template, address, **more):
    return {
        "requestId": str(uuid.uuid4()),
        "source": "support",
        "templateKey": template,
        "recipients": [{"address": address}],
        "priority": "P1",
        **more,
    }


def publish(options, domain):
    def sample(key):
        return json.loads((options.templates / key / "sample.json").read_text(encoding="utf-8"))

    ticket = sample("support_ticket_created")
    requests = [request("support_ticket_created", f"person-{n}@{domain}", variables=ticket) for n in range(30)]
    requests += [request("no_such_template", f"nobody-{n}@{domain}") for n in range(10)]
    requests += [request("support_ticket_created", f"missing-{n}@{domain}") for n in range(10)]
    requests += [request("support_ticket_created", f"suppressed-{n}@{domain}", variables=ticket) for n in range(3)]
    lines = "".join(json.dumps(one) + "\n" for one in requests)
    file = options.seeds.with_suffix(".jsonl")
    file.write_text(lines, encoding="utf-8")
    subprocess.run(["postrider", "publish", "--lines", file], check=True, stdout=subprocess.DEVNULL)

    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    # The same bytes again would be a letter that is known, and was discarded or replayed by an earlier run.
    for n in range(5):
        channel.basic_publish("email.requests", "support.p1", f"no request {n} of {domain}".encode())
        channel.basic_publish("email.requests", f"nowhere.{n}", f"for nobody {n} of {domain}".encode())
    connection.close()
    return [one["requestId"] for one in requests]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=pathlib.Path, required=True)
    options = parser.parse_args()

    # An earlier run may have left lanes paused and templates without an active version.
    for lane in ("fast", "standard", "bulk"):
        ask("POST", f"/lanes/{lane}/resume", {})
    sync = ["postrider", "templates", "sync", "--activate"]
    subprocess.run(sync, check=True, stdout=subprocess.DEVNULL)

    domain = f"{uuid.uuid4().hex[:8]}.example"
    suppressed = [f"suppressed-{n}@{domain}" for n in range(3)]
    entries = [
        ask("POST", "/suppressions", {"address": address, "reason": "complaint", "note": "by telephone"})
        for address in suppressed
    ]
    lifted = ask("POST", "/suppressions", {"address": f"lifted@{domain}"})
    ask("DELETE", f"/suppressions/{lifted['id']}")
    requests = publish(options, domain)

    for address in suppressed:
        wait_for("a mail that is suppressed", lambda: ask("GET", f"/messages?to={address}&status=suppressed")["items"])
    for n in range(30):
        wait_for("a mail that is sent", lambda: ask("GET", f"/messages?to=person-{n}@{domain}&status=sent")["items"])
    for reason in ("unknown_template", "missing_variable", "malformed", "unrouted"):
        wait_for(f"letters: {reason}", lambda: ask("GET", f"/dead-letters?reason={reason}&state=waiting")["items"])
    letters = ask("GET", "/dead-letters?limit=20&state=waiting")
    ask("POST", f"/dead-letters/{letters['items'][0]['id']}/discard", {"note": "nobody wants it"})

    messages = ask("GET", "/messages?limit=20")
    entries_page = ask("GET", "/suppressions?limit=2")
    seeds = {
        "uuid": [item["id"] for item in messages["items"] + letters["items"]] + requests[:10],
        "email": suppressed + [f"person-{n}@{domain}" for n in range(5)],
        "suppression-id": [entry["id"] for entry in entries] + [lifted["id"]],
        "suppression-cursor": [entries_page["next"]] if entries_page["next"] else [],
        "dead-letter-cursor": [letters["next"]] if letters["next"] else [],
    }
    options.seeds.write_text(json.dumps(seeds), encoding="utf-8")


main()
