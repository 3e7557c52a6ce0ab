"""The names of all headers that this library writes or reads.

The hub's own headers have plain names. Headers that this library adds begin with ``x-``: other clients of the hub may
ignore them. The ``headers=`` argument of a call may use neither (:data:`WIRE_HEADERS`, :data:`RESERVED_PREFIX`).
"""

from __future__ import annotations

__all__ = [
    "ATTEMPTS",
    "BODY_BYTES",
    "CAUSATION_ID",
    "CRASHES",
    "DESTINATION",
    "ERROR_MESSAGE",
    "ERROR_TRACEBACK",
    "ERROR_TYPE",
    "EVENT_TYPE",
    "FIRST_FAILED_AT",
    "HUB_HEADERS",
    "IN_REPLY_TO",
    "LEFT_OUT",
    "ORIGINAL_EXCHANGE",
    "ORIGINAL_EXPIRATION",
    "ORIGINAL_ROUTING_KEY",
    "ORIGINAL_USER_ID",
    "PRIORITY",
    "REASON",
    "RESERVED_PREFIX",
    "SERVICE",
    "SOURCE",
    "TIMESTAMP",
    "TTL",
    "TTL_LEFT",
    "UNDECODABLE",
    "WIRE_HEADERS",
    "X_DEATH",
]

# --- the hub's own headers -----------------------------------------------------------------------

#: The service that sent the message or published the event.
SOURCE = "source"
#: The service that receives a message.
DESTINATION = "destination"
#: The type of an event.
EVENT_TYPE = "event_type"
#: When the message was sent: ISO 8601, UTC.
TIMESTAMP = "timestamp"
#: Seconds until the message expires.
TTL = "ttl"
#: Priority, 0 to 9; 9 is the most urgent.
PRIORITY = "priority"

WIRE_HEADERS = frozenset({SOURCE, DESTINATION, EVENT_TYPE, TIMESTAMP, TTL, PRIORITY})
#: The name of a caller's own header must not begin with this.
RESERVED_PREFIX = "x-"

# --- added by this library when it sends ---------------------------------------------------------

#: The id of the message that was being handled when this one was sent.
CAUSATION_ID = "x-causation-id"
#: In a reply: the message id of the request.
IN_REPLY_TO = "x-in-reply-to"

# --- added to a message that goes to a retry queue or a dead-letter queue ------------------------

#: Number of handler runs that failed.
ATTEMPTS = "x-attempts"
#: How many processes have crashed while their handler had the message, as far as they were counted.
CRASHES = "x-crashes"
#: The service that moved the message to the queue.
SERVICE = "x-service"
#: Class of the exception, its text if it may be told, and where it was raised. An error reply has the first two.
ERROR_TYPE = "x-error-type"
ERROR_MESSAGE = "x-error-message"
ERROR_TRACEBACK = "x-error-traceback"
#: Why the message was dead-lettered.
REASON = "x-reason"
#: When the message failed first: ISO 8601, UTC.
FIRST_FAILED_AT = "x-first-failed-at"
#: The exchange and routing key with which the message was first published.
ORIGINAL_EXCHANGE = "x-original-exchange"
ORIGINAL_ROUTING_KEY = "x-original-routing-key"
#: The ``expiration`` (in milliseconds) and the ``user_id`` of the original message: the moved copy has neither.
ORIGINAL_EXPIRATION = "x-original-expiration"
ORIGINAL_USER_ID = "x-original-user-id"
#: Milliseconds of the ttl that are left when the message returns from the retry queue.
TTL_LEFT = "x-ttl-left"
#: Why some properties and headers of the original message are missing.
LEFT_OUT = "x-left-out"

# --- set on arrival, or by the broker ------------------------------------------------------------

#: The size in bytes of a body that was larger than ``max_message_bytes`` and was not kept. The body is empty then.
BODY_BYTES = "x-body-bytes"
#: The only header of a delivery whose headers cannot be decoded; the value is the reason.
UNDECODABLE = "x-undecodable"
#: RabbitMQ's list of the queues that dead-lettered the message.
X_DEATH = "x-death"
#: A quorum queue writes there how often a message came back to it.
DELIVERY_COUNT = "x-delivery-count"

#: The names that nobody but the hub, this library and the broker may write.
HUB_HEADERS = WIRE_HEADERS | {
    *(CAUSATION_ID, IN_REPLY_TO, ATTEMPTS, CRASHES, SERVICE, ERROR_TYPE, ERROR_MESSAGE, ERROR_TRACEBACK, REASON),
    *(FIRST_FAILED_AT, ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, ORIGINAL_EXPIRATION, ORIGINAL_USER_ID, TTL_LEFT),
    *(LEFT_OUT, BODY_BYTES, UNDECODABLE, X_DEATH, DELIVERY_COUNT, "CC", "BCC"),
}
