"""Ids that are made many at a time: each a random UUID, none given twice, not by a forked child either."""

from __future__ import annotations

import os
from uuid import RFC_4122, UUID

import pytest

from message_hub_sync.envelope.ids import new_id


def test_each_id_is_a_random_uuid_in_its_usual_form() -> None:
    texts = [new_id() for _ in range(5_000)]
    found = [UUID(text) for text in texts]
    assert [str(identity) for identity in found] == texts
    assert {(identity.version, identity.variant) for identity in found} == {(4, RFC_4122)}
    assert len(set(texts)) == len(texts)
    # Each of the 122 bits that are left to chance is set in some and not in others.
    chance = 0
    for identity in found:
        chance |= identity.int ^ found[0].int
    assert chance.bit_count() == 122


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a platform without fork has no forked children")
def test_a_forked_child_gives_none_of_its_parents_ids() -> None:
    new_id()  # a batch is there, of which more is left
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, "\n".join(new_id() for _ in range(50)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read().split("\n")
    os.waitpid(child, 0)
    assert len(theirs) == 50
    assert set(theirs).isdisjoint(new_id() for _ in range(100))
