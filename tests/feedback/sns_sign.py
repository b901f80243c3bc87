#!/usr/bin/python3
"""Signs messages as Amazon SNS does: written from Amazon's description of its signatures, not from postrider's code.

    sns_sign.py serve DIR [OPTIONS]           fields as JSON lines on stdin, signed envelopes as JSON lines on stdout
    sns_sign.py batch DIR IN OUT [OPTIONS]    the same from file to file, on all cores

A line is an object with at least `TopicArn`; what an envelope needs besides is filled in, what is given stays:
`Type` (Notification), `Message`, `MessageId`, `Timestamp` (now), `Subject` (none), `Token`, `SubscribeURL`,
`SignatureVersion` ("2"), `SigningCertURL`.

DIR gets, unless they are there already: `signing.pem` (the certificate, as SNS publishes it: alone), `signing.key`,
`between.cer` (its issuer, DER, at the address that the certificate names), `root.pem` (the authority above).
"""

import argparse
import base64
import concurrent.futures
import datetime
import json
import os
import pathlib
import sys
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

# https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html: which fields are signed, in this order;
# each as its name, a line feed, its value, a line feed. `Subject` only if there is one.
SIGNED = {
    "Notification": ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"],
    "SubscriptionConfirmation": ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
    "UnsubscribeConfirmation": ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
}
HASHES = {"1": hashes.SHA1(), "2": hashes.SHA256()}
ISSUER_URL = "http://crt.tests.amazontrust.com/between.cer"
CERTIFICATE = "SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"


def new_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def certificate(name, key, issuer, issuer_key, begins, ends, extensions):
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(issuer_key, hashes.SHA256())


def called(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def make_certificates(folder, options):
    """A root, an authority between, and SNS's certificate: the shape of Amazon's own chain."""
    now = datetime.datetime.utcnow()
    decade = now + datetime.timedelta(days=3650)
    yesterday = now - datetime.timedelta(days=1)
    authority = [(x509.BasicConstraints(ca=True, path_length=None), True)]
    root_key, between_key, key = new_key(), new_key(), new_key()
    root_name, between_name = called(f"Root {uuid.uuid4()}"), called(f"Between {uuid.uuid4()}")
    root = certificate(root_name, root_key, root_name, root_key, yesterday, decade, authority)
    between = certificate(between_name, between_key, root_name, root_key, yesterday, decade, authority)
    issuers = x509.AccessDescription(
        AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(options.issuer_url)
    )
    leaf = certificate(
        called(options.name),
        key,
        between_name,
        between_key,
        now + datetime.timedelta(days=options.begins),
        now + datetime.timedelta(days=options.ends),
        [
            (x509.SubjectAlternativeName([x509.DNSName(options.name)]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.AuthorityInformationAccess([issuers]), False),
        ],
    )
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    (folder / "root.pem").write_bytes(root.public_bytes(pem))
    (folder / "between.cer").write_bytes(between.public_bytes(der))
    (folder / "signing.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "signing.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def load_key(folder):
    return serialization.load_pem_private_key((folder / "signing.key").read_bytes(), password=None)


def text_to_sign(envelope):
    lines = []
    for field in SIGNED[envelope["Type"]]:
        if field in envelope:
            lines.append(f"{field}\n{envelope[field]}\n")
    return "".join(lines)


def complete(fields):
    """The fields as SNS would send them, in its order, but for the signature."""
    topic = fields["TopicArn"]
    partition, region = topic.split(":")[1], topic.split(":")[3]
    host = f"https://sns.{region}.amazonaws.com" + (".cn" if partition == "aws-cn" else "")
    kind = fields.get("Type", "Notification")
    envelope = {"Type": kind, "MessageId": str(uuid.uuid4())}
    if kind != "Notification":
        token = fields.get("Token", uuid.uuid4().hex * 8)
        envelope["Token"] = token
        envelope["SubscribeURL"] = f"{host}/?Action=ConfirmSubscription&TopicArn={topic}&Token={token}"
    envelope["TopicArn"] = topic
    envelope["Message"] = f"You have chosen to subscribe to the topic {topic}."
    now = datetime.datetime.now(datetime.timezone.utc)
    envelope["Timestamp"] = now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z"
    envelope["SignatureVersion"] = "2"
    envelope["Signature"] = ""
    envelope["SigningCertURL"] = f"{host}/{CERTIFICATE}"
    if kind == "Notification":
        envelope["UnsubscribeURL"] = f"{host}/?Action=Unsubscribe&SubscriptionArn={topic}:{uuid.UUID(int=0)}"
    envelope.update(fields)
    return envelope


def sign(key, fields):
    envelope = complete(fields)
    text = text_to_sign(envelope).encode("utf-8")
    signature = key.sign(text, padding.PKCS1v15(), HASHES[envelope["SignatureVersion"]])
    envelope["Signature"] = base64.b64encode(signature).decode("ascii")
    return json.dumps(envelope)


def sign_lines(folder, lines):
    key = load_key(folder)
    return [sign(key, json.loads(line)) for line in lines]


def serve(folder):
    key = load_key(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        print(sign(key, json.loads(line)), flush=True)


def batch(folder, source, target):
    with open(source, encoding="utf-8") as file:
        lines = file.readlines()
    pieces = [lines[at : at + 1000] for at in range(0, len(lines), 1000)]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool, open(target, "w", encoding="utf-8") as file:
        for signed in pool.map(sign_lines, [folder] * len(pieces), pieces):
            file.writelines(f"{line}\n" for line in signed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["serve", "batch"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--name", default="sns.amazonaws.com", help="whose certificate it is")
    parser.add_argument("--begins", type=int, default=-1, help="days from now")
    parser.add_argument("--ends", type=int, default=365, help="days from now")
    parser.add_argument("--issuer-url", default=ISSUER_URL, help="where the certificate says its issuer's lies")
    options = parser.parse_args()
    if not (options.folder / "signing.key").exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        make_certificates(options.folder, options)
    if options.what == "serve":
        serve(options.folder)
    else:
        batch(options.folder, *options.files)


if __name__ == "__main__":
    main()
