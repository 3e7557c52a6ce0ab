"""A service as the asynchronous library's: aio-pika, the wire of the design, nothing of ours.

``python async_service.py URL SERVICE`` does what it is told on standard input, one JSON object a line, and writes
what it did (``done``) and what it got (``got``), with every property as it came.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractIncomingMessage


def write(kind: str, value: Any) -> None:
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


class AsyncService:
    def __init__(self, channel: aio_pika.abc.AbstractChannel, service: str) -> None:
        self.channel = channel
        self.service = service

    async def inbox(self, durable: bool = True, arguments: dict[str, Any] | None = None) -> str:
        queue = await self.channel.declare_queue(f"{self.service}.messages", durable=durable, arguments=arguments)
        await queue.consume(self.receive)
        return queue.name

    async def subscribe(
        self,
        event_type: str,
        exchange_durable: bool = True,
        durable: bool = True,
        arguments: dict[str, Any] | None = None,
    ) -> str:
        exchange = await self.exchange(exchange_durable)
        name = f"{self.service}.{event_type}"
        queue = await self.channel.declare_queue(name, durable=durable, arguments=arguments)
        await queue.bind(exchange, event_type)
        await queue.consume(self.receive)
        return queue.name

    async def exchange(self, durable: bool = True) -> aio_pika.abc.AbstractExchange:
        return await self.channel.declare_exchange("events", aio_pika.ExchangeType.TOPIC, durable=durable)

    async def send(self, destination: str, payload: Any, **more: Any) -> str:
        now = datetime.now(timezone.utc)
        message = aio_pika.Message(
            json.dumps(payload).encode(),
            message_id=str(uuid4()),
            correlation_id=more.get("correlation_id", str(uuid4())),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            priority=more.get("priority", 0),
            expiration=300,
            app_id=self.service,
            type="service_message",
            timestamp=now,
            reply_to=more.get("reply_to"),
            headers={
                "source": self.service,
                "destination": destination,
                "timestamp": now.isoformat(),
                "ttl": 300,
                "priority": more.get("priority", 0),
            },
        )
        routing_key = more.get("routing_key", f"{destination}.messages")
        await self.channel.default_exchange.publish(message, routing_key, mandatory=True)
        return str(message.message_id)

    async def publish(self, event_type: str, payload: Any, exchange_durable: bool = True, **more: Any) -> str:
        now = datetime.now(timezone.utc)
        message = aio_pika.Message(
            json.dumps(payload).encode(),
            message_id=str(uuid4()),
            correlation_id=more.get("correlation_id", str(uuid4())),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            app_id=self.service,
            type="event",
            timestamp=now,
            headers={"source": self.service, "event_type": event_type, "timestamp": now.isoformat()},
        )
        await (await self.exchange(exchange_durable)).publish(message, event_type)
        return str(message.message_id)

    async def publish_many(self, event_type: str, count: int) -> list[str]:
        return [await self.publish(event_type, {"character_id": str(number)}) for number in range(count)]

    async def send_many(self, destination: str, count: int) -> list[str]:
        return [await self.send(destination, {"number": number}) for number in range(count)]

    async def ask(self, destination: str, payload: Any) -> str:
        """A request whose reply goes to a queue of this connection's own."""
        replies = await self.channel.declare_queue(exclusive=True, auto_delete=True)
        await replies.consume(self.receive)
        return await self.send(destination, payload, reply_to=replies.name)

    async def receive(self, message: AbstractIncomingMessage) -> None:
        async with message.process():
            payload = json.loads(message.body)
            if payload.get("action") == "answer as the guide does":
                source = str(message.headers["source"])
                await self.send(source, {"data": "from the peer"}, correlation_id=message.correlation_id)
            elif payload.get("action") == "answer to reply_to":
                await self.send(
                    str(message.headers["source"]),
                    {"data": "from the peer"},
                    correlation_id=message.correlation_id,
                    routing_key=message.reply_to,
                )
            write("got", received(message))


def received(message: AbstractIncomingMessage) -> dict[str, Any]:
    mode, timestamp = message.delivery_mode, message.timestamp
    return {
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        "body": message.body.decode(),
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "delivery_mode": None if mode is None else int(mode),
        "priority": message.priority,
        "expiration": message.expiration,
        "app_id": message.app_id,
        "user_id": message.user_id,
        "type": message.type,
        "timestamp": None if timestamp is None else timestamp.timestamp(),
        "reply_to": message.reply_to,
        "headers": message.headers,
    }


async def main(url: str, service: str) -> None:
    connection = await aio_pika.connect_robust(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        peer = AsyncService(channel, service)
        write("done", "connected")
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            try:
                write("done", await getattr(peer, order.pop("do"))(**order))
            except Exception as error:
                write("failed", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
