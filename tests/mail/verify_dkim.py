#!/usr/bin/python3
"""verify_dkim.py RECORDS MAIL...: has dkimpy, which is not our code, verify every signature of every mail.

RECORDS is a JSON object of DNS names and their TXT records. Prints one JSON object a mail: which signatures pass as the mail
is, and which still pass after each of the changes that a relay, or somebody with bad intent, makes on the way.
"""

import json
import re
import sys

import dkim


def header(mail, name, value):
    """The mail with another value of a header, folds and all."""
    pattern = rb"(?ims)^" + name + rb":.*?\r\n(?![ \t])"
    changed, count = re.subn(pattern, name + b": " + value + b"\r\n", mail, count=1)
    assert count == 1, name
    return changed


def without(mail, name):
    return re.sub(rb"(?ims)^" + name + rb":.*?\r\n(?![ \t])", b"", mail)


CHANGES = {
    "as it is": lambda mail: mail,
    # What Amazon SES does.
    "another Message-ID": lambda mail: header(mail, b"Message-ID", b"<0102@eu-west-1.amazonses.com>"),
    "another Date": lambda mail: header(mail, b"Date", b"Fri, 01 Jan 2100 00:00:00 +0000"),
    "without headers for SES": lambda mail: without(without(mail, b"X-SES-CONFIGURATION-SET"), b"X-SES-MESSAGE-TAGS"),
    "with a trace": lambda mail: b"Received: from a by b; Fri, 01 Jan 2100 00:00:00 +0000\r\n" + mail,
    "other blanks": lambda mail: re.sub(rb"(?m)^Subject: ", b"subject:   ", mail, count=1) + b"\r\n\r\n",
    # What nobody may do.
    "another subject": lambda mail: header(mail, b"Subject", b"Urgent: pay here"),
    "a second subject": lambda mail: b"Subject: Urgent: pay here\r\n" + mail,
    "a second sender": lambda mail: b"From: boss@rgz.bj\r\n" + mail,
    "a Reply-To more": lambda mail: b"Reply-To: thief@example.com\r\n" + mail,
    "a Cc": lambda mail: b"Cc: many@example.com\r\n" + mail,
    "another body": lambda mail: mail.replace(b"RGZ", b"RCZ"),
    "a longer body": lambda mail: mail + b"one line more\r\n",
}


def main():
    with open(sys.argv[1], encoding="ascii") as file:
        records = {name.rstrip(".").encode(): text.encode() for name, text in json.load(file).items()}

    def dns(name, timeout=5):
        return records.get(name.rstrip(b"."))

    def passing(mail):
        count = len(re.findall(rb"(?im)^dkim-signature:", mail.split(b"\r\n\r\n", 1)[0]))
        found = []
        for index in range(count):
            verifier = dkim.DKIM(mail, minkey=1024)
            try:
                passed = verifier.verify(idx=index, dnsfunc=dns)
            except dkim.DKIMException:
                passed = False
            if passed:
                found.append(verifier.signature_fields[b"a"].decode())
        return sorted(found)

    for path in sys.argv[2:]:
        with open(path, "rb") as file:
            mail = file.read()
        print(json.dumps({name: passing(change(mail)) for name, change in CHANGES.items()}))


main()
