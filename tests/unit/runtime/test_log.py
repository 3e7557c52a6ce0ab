"""A SafeLogger logs the records of a plain logger, and raises no ``Exception`` of its handlers."""

from __future__ import annotations

import logging

import pytest
from mailing import Mailing, mailing

from message_hub_sync.runtime.log import SafeLogger

NAME = "message_hub_sync.test"


def test_a_record_is_like_that_of_a_logger_asked_in_the_same_place(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, NAME)
    ours, theirs = SafeLogger(NAME), logging.getLogger(NAME)
    error = ValueError("no")
    for logger in (ours, theirs):
        logger.debug("%s %d", "one", 1)
        logger.info("%s %d", "one", 1)
        logger.warning("%s %d", "one", 1)
        logger.error("%s %d", "one", 1, exc_info=error)
        logger.log(logging.CRITICAL, "%s %d", "one", 1)
        try:
            raise error
        except ValueError:
            logger.exception("%s %d", "one", 1)
    said = [
        (r.name, r.levelno, r.getMessage(), r.funcName, r.lineno, r.exc_info and r.exc_info[1]) for r in caplog.records
    ]
    assert said[:6] == said[6:]


def test_what_a_handler_or_a_filter_raises_ends_there() -> None:
    def raising(record: logging.LogRecord) -> bool:
        raise KeyError("no such field")

    with mailing(NAME):
        SafeLogger(NAME).warning("and on it goes")
    logging.getLogger(NAME).addFilter(raising)
    try:
        SafeLogger(NAME).warning("and on it goes")
    finally:
        logging.getLogger(NAME).removeFilter(raising)


def test_what_interrupts_the_thread_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handler: Mailing, record: logging.LogRecord) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Mailing, "emit", interrupted)
    with mailing(NAME), pytest.raises(KeyboardInterrupt):
        SafeLogger(NAME).warning("and no further")
