"""aio-pika: one event loop, publisher confirms, one task in place of each thread, ``gather`` for a bulk."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import aio_pika

from benchmarks.work import (
    Countdown,
    Operation,
    Stopwatch,
    Task,
    encoded,
    envelope,
    payload_of,
    responding,
    serve_for_ever,
)

DISTRIBUTION = "aio-pika"


def _message(task: Task, body: bytes, **more: Any) -> aio_pika.Message:
    properties, headers = envelope(task.service)
    # aio-pika expects seconds.
    properties["expiration"] = 300
    return aio_pika.Message(body, headers=headers, **{**properties, **more})


async def publish(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    async with await aio_pika.connect(task.url) as connection:
        exchange = (await connection.channel()).default_exchange

        async def work(count: int) -> None:
            for _ in range(count):
                await exchange.publish(_message(task, encoded(payload)), task.queue)

        await work(task.warm_up)
        with watch:
            await asyncio.gather(*(work(task.share(number)) for number in range(task.threads)))


async def bulk(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    async with await aio_pika.connect(task.url) as connection:
        exchange = (await connection.channel()).default_exchange
        for _ in range(task.warm_up):
            await exchange.publish(_message(task, encoded(payload)), task.queue)
        with watch:
            await asyncio.gather(
                *(exchange.publish(_message(task, encoded(payload)), task.queue) for _ in range(task.messages))
            )


async def consume(task: Task, watch: Stopwatch) -> None:
    countdown = Countdown(task, watch)
    done = asyncio.Event()

    async def handle(message: Any) -> None:
        if task.acks == "default":
            json.loads(message.body)
        await message.ack()
        if countdown.one():
            done.set()

    async with await aio_pika.connect(task.url) as connection:
        channel = await connection.channel()
        if task.acks != "default":
            await channel.set_qos(task.prefetch)
        queue = await channel.get_queue(task.queue)
        watch.start()
        await queue.consume(handle)
        await done.wait()


async def latency(task: Task, watch: Stopwatch) -> None:
    payload = payload_of(task.body_bytes)
    arrivals: asyncio.Queue[float] = asyncio.Queue()

    async def handle(message: Any) -> None:
        arrivals.put_nowait(time.perf_counter())
        await message.ack()

    async with await aio_pika.connect(task.url) as receiving, await aio_pika.connect(task.url) as sending:
        await (await (await receiving.channel()).get_queue(task.queue)).consume(handle)
        exchange = (await sending.channel()).default_exchange
        for number in range(-task.warm_up, task.messages):
            if number == 0:
                watch.start()
            sent = time.perf_counter()
            await exchange.publish(_message(task, encoded(payload)), task.queue)
            arrived = await asyncio.wait_for(arrivals.get(), 10)
            if number >= 0:
                watch.samples.append(arrived - sent)
        watch.stop()


async def respond(task: Task, watch: Stopwatch) -> None:
    """Answers requests, in a process of its own."""
    async with await aio_pika.connect(task.url) as connection:
        channel = await connection.channel()

        async def handle(message: Any) -> None:
            reply = _message(task, message.body, correlation_id=message.correlation_id)
            await channel.default_exchange.publish(reply, message.reply_to)
            await message.ack()

        await (await channel.get_queue(task.queue)).consume(handle)
        await asyncio.to_thread(serve_for_ever)


async def request(task: Task, watch: Stopwatch) -> None:
    """As in aio-pika's tutorial on remote procedure calls: an exclusive reply queue, futures by correlation id."""
    payload = payload_of(task.body_bytes)
    async with await aio_pika.connect(task.url) as asking:
        channel = await asking.channel()
        replies_to = await channel.declare_queue(exclusive=True)
        waiting: dict[str, asyncio.Future[bytes]] = {}

        async def on_reply(message: Any) -> None:
            waiting.pop(message.correlation_id).set_result(message.body)

        await replies_to.consume(on_reply, no_ack=True)
        for number in range(-task.warm_up, task.messages):
            if number == 0:
                watch.start()
            asked = time.perf_counter()
            correlation_id = str(uuid4())
            reply = waiting[correlation_id] = asyncio.get_running_loop().create_future()
            message = _message(task, encoded(payload), reply_to=replies_to.name, correlation_id=correlation_id)
            await channel.default_exchange.publish(message, task.queue)
            await asyncio.wait_for(reply, 10)
            if number >= 0:
                watch.samples.append(time.perf_counter() - asked)
        watch.stop()


async def _with_responder(task: Task, watch: Stopwatch) -> None:
    with responding(task):
        await request(task, watch)


def _run(operation: Callable[[Task, Stopwatch], Coroutine[Any, Any, None]]) -> Operation:
    return lambda task, watch: asyncio.run(operation(task, watch))


OPERATIONS: dict[str, Operation] = {
    "publish": _run(publish),
    "bulk": _run(bulk),
    "consume": _run(consume),
    "latency": _run(latency),
    "request": _run(_with_responder),
    "respond": _run(respond),
}
