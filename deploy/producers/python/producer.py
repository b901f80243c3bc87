"""A producer of mail requests in Python: publishes one, and hears what becomes of them. See the README beside it.

    python3 producer.py publish ada@example.bj 4711    prints the request's id once the broker has the message
    python3 producer.py events [COUNT]                 prints what became of mails, a JSON object a line

AMQP_URL says where the broker is, POSTRIDER_DESCRIPTORS where the contract's descriptors are (proto/postrider.binpb).
"""

import collections
import json
import os
import pathlib
import secrets
import sys
import time
import uuid

import pika
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

REQUESTS = "email.requests"
EVENTS = "email.events"
# Who we are: the first word of routing keys, and of the queue with our events.
SOURCE = "support"
# Ours alone; names of requests are made in it.
NAMESPACE = uuid.UUID("5f1d9a6e-3c52-4e0b-9a41-6a0f7a6d2f11")
# Publishing is tried this often before it is somebody else's trouble.
TRIES = 5
# Events that were seen lately, so that one that comes twice counts once.
SEEN_MAX = 10_000


def message_classes():
    """EmailRequest, EmailEvent: made from the descriptors, so that no generated code has to fit the runtime's version."""
    beside = pathlib.Path(__file__).resolve().parents[3] / "proto" / "postrider.binpb"
    path = pathlib.Path(os.environ.get("POSTRIDER_DESCRIPTORS") or beside)
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file:
        pool.Add(file)
    # Since protobuf 4.22 a function, before that a method.
    to_class = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return [to_class(pool.FindMessageTypeByName(f"postrider.v1.{name}")) for name in ("EmailRequest", "EmailEvent")]


EmailRequest, EmailEvent = message_classes()


def ticket_created(to, ticket):
    """What this service has to say. The id is made from what the mail is about, so that whoever says it again, after a
    crash or a doubt, says it under the same id, and one mail is sent."""
    return json_format.ParseDict(
        {
            "requestId": str(uuid.uuid5(NAMESPACE, f"ticket-created/{ticket}")),
            "source": SOURCE,
            "templateKey": "support_ticket_created",
            "recipients": [{"address": to, "displayName": "Ada"}],
            "variables": {
                "ticket_number": ticket,
                "title": "No signal since this morning",
                "priority": "P2",
                "support_link": f"https://support.example.bj/{ticket}",
            },
            "priority": "P1",
            "metadata": {"ticket": str(ticket)},
        },
        EmailRequest(),
    )


def traceparent():
    """A service with tracing has its current span injected by OpenTelemetry's propagator; this one begins a trace, unless
    TRACEPARENT names one."""
    return os.environ.get("TRACEPARENT") or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def connect():
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    return connection, connection.channel()


def publish(request):
    """Returns when the broker has it for good: confirmed, and not returned."""
    pause = 0.2
    for tries_left in reversed(range(TRIES)):
        try:
            return publish_once(request)
        except pika.exceptions.ChannelClosedByBroker:
            raise  # It does not know the exchange, or we may not publish there: trying again mends nothing.
        except (pika.exceptions.AMQPConnectionError, pika.exceptions.NackError):
            # Whether it arrived is not known. The same id makes trying again harmless.
            if tries_left == 0:
                raise
            time.sleep(pause)
            pause *= 2


def publish_once(request):
    # A service keeps connection and channel open and publishes all its requests over them.
    connection, channel = connect()
    try:
        # From here on basic_publish waits for the broker's word: NackError if it could not take the message,
        # UnroutableError if no queue would get it.
        channel.confirm_delivery()
        now = time.time()
        channel.basic_publish(
            exchange=REQUESTS,
            routing_key=f"{SOURCE}.p1",
            body=request.SerializeToString(),
            properties=pika.BasicProperties(
                content_type="application/x-protobuf",
                type="postrider.v1.EmailRequest",
                message_id=request.request_id,
                delivery_mode=2,
                priority=6,
                timestamp=int(now),
                headers={"x-published-at-ms": int(now * 1000), "traceparent": traceparent()},
            ),
            mandatory=True,
        )
    finally:
        if connection.is_open:
            connection.close()


def events(count):
    """Prints events from a queue of our own, which keeps them while we are away."""
    connection, channel = connect()
    queue = f"{SOURCE}.email-events"
    # When nobody reads it, the oldest go: a queue that refused would hold up the events of all.
    arguments = {"x-queue-type": "quorum", "x-max-length": 100_000, "x-overflow": "drop-head"}
    channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.queue_bind(queue, EVENTS, f"{SOURCE}.*")
    channel.basic_qos(prefetch_count=100)
    seen = collections.OrderedDict()
    if count != 0:
        for method, _, body in channel.consume(queue):
            event = EmailEvent.FromString(body)
            if event.event_id not in seen:
                seen[event.event_id] = True
                if len(seen) > SEEN_MAX:
                    seen.popitem(last=False)
                line = {
                    "request_id": event.request_id,
                    "kind": event.kind,
                    "recipient": event.recipient,
                    "reason": event.reason,
                    "attempt": event.attempt,
                    "metadata": dict(event.metadata),
                }
                print(json.dumps(line), flush=True)
                count = None if count is None else count - 1
            # Only now: an event that we crash on comes again.
            channel.basic_ack(method.delivery_tag)
            if count == 0:
                break
    channel.cancel()
    connection.close()


def main(arguments):
    match arguments:
        case ["publish", to, ticket]:
            request = ticket_created(to, int(ticket))
            publish(request)
            print(request.request_id)
        case ["events"]:
            events(None)
        case ["events", count]:
            events(int(count))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
