"""How long to wait before trying again."""

from __future__ import annotations

from message_hub_sync.transport.rabbitmq.backoff import Backoff


def test_pauses_grow_to_five_seconds_and_stay_short_while_somebody_waits() -> None:
    backoff = Backoff()
    pauses = []
    for _ in range(12):
        backoff.failed(False, round_over=True)
        pauses.append(backoff.pauses())
    alone = [pause for pause, _ in pauses]
    assert 0.05 <= alone[0] <= 0.1
    assert all(2.5 <= pause <= 5.0 for pause in alone[7:])
    assert all(awaited <= min(0.5, pause) for pause, awaited in pauses)


def test_the_next_host_is_tried_at_once_and_only_a_full_round_is_followed_by_a_pause() -> None:
    backoff = Backoff()
    paused = []
    for number in range(6):
        backoff.failed(False, round_over=number % 3 == 2)
        paused.append(backoff.pauses()[0] > 0)
    assert paused == [False, False, True, False, False, True]


def test_a_sound_connection_that_is_lost_is_dialled_again_at_once() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.failed(False, round_over=True)
    assert backoff.lost(lived=60, round_over=False)
    assert backoff.pauses() == (0.0, 0.0)


def test_a_connection_that_is_lost_over_and_over_is_dialled_ever_more_rarely() -> None:
    backoff = Backoff()
    for _ in range(8):
        assert not backoff.lost(lived=0.01, round_over=True)
    assert backoff.pauses()[0] >= 2.5


def test_it_is_hopeless_only_when_every_host_refused_in_one_round() -> None:
    backoff = Backoff()
    backoff.failed(True, round_over=False)
    assert not backoff.all_hosts_refused
    backoff.failed(False, round_over=True)
    backoff.failed(True, round_over=False)
    assert not backoff.all_hosts_refused
    backoff.failed(True, round_over=True)
    assert backoff.all_hosts_refused
    backoff.failed(True, round_over=False)  # the next round: nothing has changed
    assert backoff.all_hosts_refused
    backoff.failed(False, round_over=False)
    assert not backoff.all_hosts_refused


def test_refusals_are_repeated_rarely_and_after_a_second_for_a_caller() -> None:
    backoff = Backoff()
    for _ in range(8):
        backoff.failed(True, round_over=True)
    alone, awaited = backoff.pauses()
    assert alone >= 15
    assert awaited == 1.0
