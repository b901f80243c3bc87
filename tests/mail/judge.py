#!/usr/bin/python3
"""Judges mails as they arrived: by Python's own parser with its strict policy, and by SpamAssassin's rules.

    judge.py DIR

DIR holds a file `NAME.eml` for each mail, as the relay got it, and beside it `NAME.json`: what another parser found in it
(`text`, `html`: SHA-256 in hexadecimal, lines ending in LF, none empty at the end; `files`: for each, `name`, `type` and `sha256` of what was sent).
Prints a line for each mail and rule, and each fault; exits with 1 if there is one.
"""

import email
import email.policy
import hashlib
import json
import pathlib
import re
import subprocess
import sys

LINE_MAX = 998  # RFC 5322, 2.1.1
ENCODED_LINE_MAX = 76  # RFC 2045, 6.7 and 6.8
ENCODED_WORD_MAX = 75  # RFC 2047, 2
HTML_MAX = 102_000  # Gmail shows no more of it
SCORE_MAX = 0.5
# What the receiving side adds: without it, rules about how a mail came in have nothing to look at.
RECEIVED = (
    b"Received: from a8-25.smtp-out.amazonses.com (a8-25.smtp-out.amazonses.com [54.240.8.25])\r\n"
    b"\tby mx.example.bj (Postfix) with ESMTPS id 4ABCDEF012\r\n"
    b"\tfor <%s>; %s\r\n"
)
faults = []


def fault(name, words):
    faults.append(f"{name}: {words}")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def judge_bytes(name, raw):
    if not raw.isascii():
        fault(name, "it is not 7-bit")
    lines = raw.split(b"\r\n")
    if any(b"\r" in line or b"\n" in line for line in lines):
        fault(name, "a line does not end in CRLF")
    if any(len(line) > LINE_MAX for line in lines):
        fault(name, f"a line is longer than {LINE_MAX}")
    for word in re.findall(rb"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=", raw.split(b"\r\n\r\n", 1)[0]):
        if len(word) > ENCODED_WORD_MAX:
            fault(name, f"an encoded word is longer than {ENCODED_WORD_MAX}")


def judge_parts(name, mail, want):
    found, files = {}, []
    for part in mail.walk():
        if part.defects:
            fault(name, f"{part.get_content_type()}: {part.defects}")
        for header, value in part.items():
            if value.defects:
                fault(name, f"{header}: {value.defects}")
        if part.is_multipart():
            continue
        encoding = part.get("Content-Transfer-Encoding", "7bit")
        if str(encoding) in ("base64", "quoted-printable"):
            if max(map(len, part.get_payload().splitlines()), default=0) > ENCODED_LINE_MAX:
                fault(name, f"{part.get_content_type()}: an encoded line is longer than {ENCODED_LINE_MAX}")
        content = part.get_payload(decode=True)
        if part.get_content_disposition() == "attachment":
            files.append({"name": part.get_filename(), "type": part.get_content_type(), "sha256": sha256(content)})
        else:
            found[part.get_content_type()] = content
    html, text = found.get("text/html", b""), found.get("text/plain", b"")
    if len(html) > HTML_MAX:
        fault(name, f"{len(html)} bytes of HTML")
    for kind, content, expected in (("html", html, want["html"]), ("text", text, want["text"])):
        if sha256(content.replace(b"\r\n", b"\n").rstrip(b"\n")) != expected:
            fault(name, f"{kind} is not what the other parser found")
    if files != want["files"]:
        fault(name, f"attachments: {files} instead of {want['files']}")
    return len(html)


def judge_spam(mails):
    mbox = bytearray()
    for name, raw in mails.items():
        mail = email.message_from_bytes(raw)
        received = RECEIVED % (mail["To"].split("<")[-1].strip("> ").encode(), mail["Date"].encode())
        body = (received + raw).replace(b"\r\n", b"\n")
        mbox += b"From noreply@rgz.bj Fri Nov 27 10:00:00 2026\n" + re.sub(rb"(?m)^From ", b">From ", body) + b"\n"
    # -L: nothing is asked of the network; -x: nobody's own preferences.
    command = ["spamassassin", "-L", "-x", "--mbox", "--cf=add_header all Scores _TESTSSCORES(,)_"]
    answer = subprocess.run(command, input=bytes(mbox), stdout=subprocess.PIPE, check=True).stdout
    judged = [email.message_from_bytes(part) for part in re.split(rb"(?m)^From noreply@rgz\.bj .*\n", answer) if part]
    if len(judged) != len(mails):
        fault("spamassassin", f"{len(judged)} answers for {len(mails)} mails")
    # Not always in the order in which they were given.
    by_id = {mail["Message-ID"]: mail for mail in judged}
    for name, raw in mails.items():
        mail = by_id.get(email.message_from_bytes(raw)["Message-ID"])
        if mail is None:
            fault(name, "SpamAssassin has not answered for it")
            continue
        score = re.search(r"score=(-?[0-9.]+)", mail.get("X-Spam-Status", ""))
        rules = [rule.split("=") for rule in "".join(mail.get("X-Spam-Scores", "").split()).split(",") if "=" in rule]
        if not score or not rules:
            fault(name, "SpamAssassin has not judged it")
            continue
        print(f"{name}: score {score[1]}, rules {' '.join('='.join(rule) for rule in rules)}")
        if float(score[1]) > SCORE_MAX:
            fault(name, f"SpamAssassin gives {score[1]}: {rules}")


def main():
    folder, mails = pathlib.Path(sys.argv[1]), {}
    for path in sorted(folder.glob("*.eml")):
        raw = mails[path.stem] = path.read_bytes()
        judge_bytes(path.stem, raw)
        try:
            mail = email.message_from_bytes(raw, policy=email.policy.strict)
        except email.errors.MessageError as error:
            fault(path.stem, f"it cannot be parsed: {error!r}")
            continue
        want = json.loads(path.with_suffix(".json").read_text())
        print(f"{path.stem}: {len(raw)} bytes, {judge_parts(path.stem, mail, want)} of HTML, no defect")
    if not mails:
        fault(folder.name, "there are no mails")
    judge_spam(mails)
    for words in faults:
        print(f"FAULT {words}")
    sys.exit(1 if faults else 0)


main()
