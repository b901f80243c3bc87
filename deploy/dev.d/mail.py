"""An SMTP server for development: accepts everything and keeps it, one .eml file a mail.

The envelope, which a mail's own headers need not agree with, is put in front as X-Envelope-* headers. Two listeners:
plain, and one that insists on STARTTLS and then on AUTH.
"""

import argparse
import asyncio
import hmac
import itertools
import os
import pathlib
import signal
import ssl
import time

from aiosmtpd.smtp import SMTP, AuthResult

MAX_MAIL = 64 * 1024 * 1024


class Keeper:
    """Stores a mail before it answers 250, as a relay that takes responsibility must."""

    def __init__(self, directory):
        self.directory = directory
        self.numbers = itertools.count(1)

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        return responses[:-1] + ["250-PIPELINING"] + responses[-1:]

    async def handle_DATA(self, server, session, envelope):
        name = f"{time.time_ns() // 1_000_000}-{os.getpid()}-{next(self.numbers):06}.eml"
        head = [
            ("X-Envelope-From", envelope.mail_from),
            ("X-Envelope-To", ", ".join(envelope.rcpt_tos)),
            ("X-Envelope-Tls", "yes" if session.ssl else "no"),
            ("X-Envelope-Auth", "yes" if session.authenticated else "no"),
        ]
        # Renamed into place, so that nobody who watches the directory reads half a mail.
        draft = self.directory / f".{name}.part"
        with open(draft, "wb") as file:
            for key, value in head:
                file.write(f"{key}: {value}\r\n".encode())
            file.write(envelope.original_content)
        draft.rename(self.directory / name)
        return f"250 2.0.0 kept as {name}"


def authenticator(user, password):
    def check(server, session, envelope, mechanism, data):
        same = hmac.compare_digest(bytes(data.login), user) & hmac.compare_digest(bytes(data.password), password)
        return AuthResult(success=same, handled=False)

    return check


async def serve(options):
    loop = asyncio.get_running_loop()
    keeper = Keeper(options.directory)
    common = {"hostname": "localhost", "ident": "ESMTP", "enable_SMTPUTF8": True, "data_size_limit": MAX_MAIL}

    def plain():
        return SMTP(keeper, loop=loop, **common)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    check = authenticator(options.user.encode(), os.environ["MAIL_PASSWORD"].encode())

    def guarded():
        return SMTP(
            keeper,
            loop=loop,
            tls_context=context,
            require_starttls=True,
            auth_required=True,
            authenticator=check,
            **common,
        )

    await loop.create_server(plain, "127.0.0.1", options.port)
    await loop.create_server(guarded, "127.0.0.1", options.tls_port)
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls-port", type=int, required=True)
    parser.add_argument("--user", required=True, help="its password is taken from MAIL_PASSWORD")
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
