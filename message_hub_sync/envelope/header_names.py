"""Every header that this library writes or reads, each name once.

Headers of the hub's wire have plain names. Headers that this library adds begin with ``x-``: other clients of the hub
may ignore them. ``headers=`` of a call may use neither (:data:`WIRE_HEADERS`, :data:`RESERVED_PREFIX`).
"""

from __future__ import annotations

__all__ = [
    "ATTEMPTS",
    "CAUSATION_ID",
    "CRASHES",
    "DESTINATION",
    "ERROR_MESSAGE",
    "ERROR_TRACEBACK",
    "ERROR_TYPE",
    "EVENT_TYPE",
    "FIRST_FAILED_AT",
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

# --- of the hub's wire ---------------------------------------------------------------------------

#: The service that sent the message or published the event.
SOURCE = "source"
#: The service that a message is for.
DESTINATION = "destination"
#: The type of an event.
EVENT_TYPE = "event_type"
#: When it was sent: ISO 8601, UTC.
TIMESTAMP = "timestamp"
#: Seconds that a message lives.
TTL = "ttl"
#: 0 to 9; 9 is the most urgent.
PRIORITY = "priority"

WIRE_HEADERS = frozenset({SOURCE, DESTINATION, EVENT_TYPE, TIMESTAMP, TTL, PRIORITY})
#: A caller's own header may not begin so.
RESERVED_PREFIX = "x-"

# --- added by this library when it sends ---------------------------------------------------------

#: The id of the message that was being handled when this one was sent.
CAUSATION_ID = "x-causation-id"
#: In a reply: the message id of the request.
IN_REPLY_TO = "x-in-reply-to"

# --- added to a message that goes to a retry queue or a dead-letter queue ------------------------

#: Handler runs that failed.
ATTEMPTS = "x-attempts"
#: How often a process may have died while it handled the message.
CRASHES = "x-crashes"
#: The service that moved the message.
SERVICE = "x-service"
#: The exception's class, its text, and the end of its traceback. A reply that tells of an error has the first two.
ERROR_TYPE = "x-error-type"
ERROR_MESSAGE = "x-error-message"
ERROR_TRACEBACK = "x-error-traceback"
#: Why the message was dead-lettered.
REASON = "x-reason"
#: When it failed first: ISO 8601, UTC.
FIRST_FAILED_AT = "x-first-failed-at"
#: Where it was published first.
ORIGINAL_EXCHANGE = "x-original-exchange"
ORIGINAL_ROUTING_KEY = "x-original-routing-key"
#: Its ``expiration`` in milliseconds, and its ``user_id``, which a move has to leave out.
ORIGINAL_EXPIRATION = "x-original-expiration"
ORIGINAL_USER_ID = "x-original-user-id"
#: Milliseconds of its ttl that are left when it comes back from the retry queue.
TTL_LEFT = "x-ttl-left"
#: Why some of its properties and headers are missing.
LEFT_OUT = "x-left-out"

# --- made on arrival, or by the broker -----------------------------------------------------------

#: Replaces all headers of a message whose headers cannot be decoded; its value says why.
UNDECODABLE = "x-undecodable"
#: RabbitMQ's list of the queues that dead-lettered the message.
X_DEATH = "x-death"
