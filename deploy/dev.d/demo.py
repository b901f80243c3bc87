"""The demonstration's producer and its witness.

`requests` writes what is published: two hundred invoices, then one request for each template, with the template's own
sample as variables. `watch` waits until each of the latter is settled and believes only what the SMTP server kept.
"""

import argparse
import base64
import email
import email.policy
import json
import pathlib
import subprocess
import sys
import time
import uuid

INVOICES = 200
SETTLED = {"sent", "delivered", "bounced", "complaint", "failed", "suppressed", "rate_limited", "expired"}

# template -> source, priority, local parts of the recipients, attachments, addresses that the manifest adds
TEMPLATES = {
    "billing_invoice_monthly": ("billing", "P2", ["comptabilite"], ["pdf"], []),
    "incident_alert_critical": ("incident", "P0", ["technique", "direction"], [], ["noc@rgz.bj"]),
    "onboarding_welcome": ("onboarding", "P1", ["candidat"], [], []),
    "onboarding_approved": ("onboarding", "P1", ["valide"], [], []),
    "onboarding_go_live": ("onboarding", "P1", ["ouverture"], [], []),
    "cutover_reminder": ("onboarding", "P3", ["bascule"], [], []),
    "rma_confirmation": ("rma", "P1", ["atelier"], [], []),
    "sla_credit_notification": ("sla", "P2", ["abonne"], [], []),
    "sla_monthly_report": ("sla", "P2", ["rapport"], ["pdf", "csv"], []),
    "support_ticket_created": ("support", "P1", ["assistance"], [], []),
    "reseller_announcement": ("marketing", "P3", ["annonces"], [], []),
}


def pdf(text):
    """A whole one-page PDF, cross-reference table included, so that a viewer opens it."""
    content = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode("latin-1")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
        b" /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def attachment(kind, name):
    if kind == "pdf":
        content, content_type = pdf(name), "application/pdf"
    else:
        content, content_type = "jour;disponibilite\n2026-02-01;99,95\n2026-02-02;100\n".encode(), "text/csv"
    return {
        "fileName": f"{name}.{kind}",
        "contentType": content_type,
        "inline": base64.b64encode(content).decode(),
    }


def sample(templates, key):
    return json.loads((templates / key / "sample.json").read_text(encoding="utf-8"))


def request(key, addresses, variables, attachments=()):
    source, priority = TEMPLATES[key][:2]
    return {
        "requestId": str(uuid.uuid4()),
        "source": source,
        "templateKey": key,
        "recipients": [{"address": address} for address in addresses],
        "variables": variables,
        "attachments": list(attachments),
        "priority": priority,
        "locale": "fr",
    }


def write_requests(options):
    folders = {path.parent.name for path in options.templates.glob("*/manifest.toml")}
    if folders != set(TEMPLATES):
        sys.exit(f"templates and demonstration disagree about: {', '.join(sorted(folders ^ set(TEMPLATES)))}")

    # Addresses of this run only: what arrives for them was sent now, and no cap of a former run applies.
    domain = f"{options.run}.example"
    invoice = sample(options.templates, "billing_invoice_monthly")
    invoices = [
        request(
            "billing_invoice_monthly",
            [f"revendeur-{number:03}@{domain}"],
            {**invoice, "invoice_number": f"DEMO-{options.run}-{number:03}"},
        )
        for number in range(1, INVOICES + 1)
    ]

    each = []
    for key, (_, _, people, kinds, _) in TEMPLATES.items():
        variables = sample(options.templates, key)
        if key == "incident_alert_critical":
            # The NOC's address is the same in every run; its mail is known by this.
            variables["incident_number"] = f"INC-{options.run}"
        each.append(
            request(
                key,
                [f"{person}@{domain}" for person in people],
                variables,
                [attachment(kind, f"{key}-{options.run}") for kind in kinds],
            )
        )

    for name, requests in (("invoices", invoices), ("each", each)):
        with open(options.directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in requests)


class Mailbox:
    """What the SMTP server kept since the demonstration began, by recipient; each file is read once."""

    def __init__(self, directory, since_ms):
        self.directory = directory
        self.since_ms = since_ms
        self.seen = set()
        self.mails = {}

    def read(self):
        for path in self.directory.glob("*.eml"):
            if path.name in self.seen or int(path.name.split("-", 1)[0]) < self.since_ms:
                continue
            self.seen.add(path.name)
            mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            for address in str(mail["X-Envelope-To"]).split(","):
                self.mails.setdefault(address.strip().lower(), []).append(mail)

    def fault(self, run, address, kinds):
        """Why the one mail expected for this address is not as it should be; None when it is."""
        mails = self.mails.get(address, [])
        if not address.endswith(f"@{run}.example"):
            mails = [mail for mail in mails if run in str(mail["Subject"])]
        if len(mails) != 1:
            return "no mail" if not mails else f"{len(mails)} mails"
        names = sorted(part.get_filename() or "" for part in mails[0].iter_attachments())
        if [name.rsplit(".", 1)[-1] for name in names] != sorted(kinds):
            return f"attachments {names}"
        return None


def load(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def messages(ids):
    arguments = [part for identity in ids for part in ("--request", identity)]
    answer = subprocess.run(
        ["postrider", "messages", "--output", "json", "--limit", "100", *arguments],
        check=True,
        stdout=subprocess.PIPE,
    )
    return {(row["request_id"], row["to"].lower()): row for row in json.loads(answer.stdout)["items"]}


def table(header, rows):
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in (header, ["-" * width for width in widths], *rows):
        # Numbers stand in the last column but one.
        cells = [c.rjust(w) if i == len(row) - 2 else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def watch(options):
    each = load(options.directory / "each.jsonl")
    invoices = load(options.directory / "invoices.jsonl")
    expected = [
        (item, address)
        for item in each
        for address in [person["address"] for person in item["recipients"]] + TEMPLATES[item["templateKey"]][4]
    ]
    mailbox = Mailbox(options.mail, options.since_ms)
    deadline = time.monotonic() + options.timeout

    def invoices_missing():
        return [item for item in invoices if mailbox.fault(options.run, item["recipients"][0]["address"], [])]

    while True:
        rows = messages([item["requestId"] for item in each])
        mailbox.read()
        settled = all(
            rows.get((item["requestId"], address), {}).get("status") in SETTLED for item, address in expected
        )
        if (settled and not invoices_missing()) or time.monotonic() > deadline:
            break
        time.sleep(0.2)

    faults = 0
    lines = []
    for item, address in expected:
        row = rows.get((item["requestId"], address), {})
        status = row.get("status", "unknown to the database")
        fault = mailbox.fault(options.run, address, TEMPLATES[item["templateKey"]][3])
        faults += status not in ("sent", "delivered") or fault is not None
        latency = row.get("latency_ms")
        lines.append(
            (
                item["templateKey"],
                row.get("lane") or "-",
                address,
                status,
                "-" if latency is None else latency,
                row.get("error") or fault or "arrived",
            )
        )
    print()
    table(("template", "lane", "recipient", "status", "ms", "mail"), lines)

    missing = len(invoices_missing())
    print()
    print(f"{len(lines) - faults} of {len(lines)} mails arrived, and {len(invoices) - missing} of the")
    print(f"{len(invoices)} invoices that were queued ahead of them. They lie in {options.mail}")
    return 1 if faults or missing else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="where the requests lie")
    parser.add_argument("--run", required=True, help="a word that tells this run from others")
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("requests")
    writer.add_argument("--templates", type=pathlib.Path, required=True)
    watcher = commands.add_parser("watch")
    watcher.add_argument("--mail", type=pathlib.Path, required=True)
    watcher.add_argument("--since-ms", type=int, required=True)
    watcher.add_argument("--timeout", type=float, default=120)
    options = parser.parse_args()
    if options.command == "requests":
        write_requests(options)
        return 0
    return watch(options)


if __name__ == "__main__":
    sys.exit(main())
