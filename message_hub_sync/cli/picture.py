"""An SVG diagram of publishers, events and subscribers, from left to right. A "cord" is a line between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from message_hub_sync.catalogue import EventType

__all__ = ["hues", "svg_picture"]

#: Number of colours in the style sheet. With more services than colours, some share a colour.
_HUES = 6
_ROW = 31
_EVENT_HEIGHT = 24
_SERVICE_HEIGHT = 40
#: Smallest vertical distance between the centres of two services.
_SERVICE_GAP = 58
#: Horizontal length of a line.
_CORD = 190
#: Width of a monospaced character at the picture's font size of 13, and of a bold one at 14.
_NAME_CHARACTER, _SERVICE_CHARACTER = 7.9, 8.2


def hues(events: Iterable[EventType]) -> dict[str, int]:
    """The colour number of each service. Publishers come first, so that their colours differ."""
    events = list(events)
    publishers = [event.publisher for event in events if event.publisher is not None]
    names = dict.fromkeys([*publishers, *(name for event in events for name in event.services)])
    return {name: number % _HUES for number, name in enumerate(names)}


def svg_picture(events: Sequence[EventType]) -> str:
    """Build the ``<svg>`` element. It uses the style sheet of the page, and links to the page's events."""
    colours = hues(events)
    middles = {event.name: (row + 0.5) * _ROW + 6 for row, event in enumerate(events)}
    publishers = _placed({e.publisher: [] for e in events if e.publisher}, events, middles, "publisher")
    subscribers = _placed({name: [] for e in events for name in e.subscribers}, events, middles, "subscriber")

    service_width = max((len(name) for name in colours), default=10) * _SERVICE_CHARACTER + 32
    event_width = max((len(event.name) for event in events), default=10) * _NAME_CHARACTER + 24
    left, middle, right = 1.0, service_width + _CORD, service_width + event_width + 2 * _CORD
    width = right + service_width + 1
    height = max(
        [len(events) * _ROW, *(y + _SERVICE_HEIGHT / 2 for y in (*publishers.values(), *subscribers.values()))]
    )
    height += 12

    cords, boxes = [], []
    for event in events:
        y = middles[event.name]
        colour = "hue-none" if event.publisher is None else f"hue-{colours[event.publisher]}"
        if event.publisher is not None:
            start = (left + service_width, publishers[event.publisher])
            cords.append(_cord(start, (middle, y), colour, "publisher", event.publisher, event))
        for name in event.subscribers:
            ends = (middle + event_width, y), (right, subscribers[name])
            cords.append(_cord(*ends, colour, "subscriber", name, event))
        boxes.append(_event(middle, y, event_width, colour, event))
    for kind, x, placed in (("publisher", left, publishers), ("subscriber", right, subscribers)):
        boxes += [_service(x, y, service_width, colours[name], kind, name) for name, y in placed.items()]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
            'role="group" aria-label="Publishers on the left, events, subscribers on the right">',
            '<g class="cords" aria-hidden="true">',
            *cords,
            "</g>",
            *boxes,
            "</svg>",
        ]
    )


def _placed(
    heights: dict[str, list[float]], events: Sequence[EventType], middles: dict[str, float], kind: str
) -> dict[str, float]:
    """The height of each service: near the mean height of its events, without overlap with other services."""
    for event in events:
        for name in event.subscribers if kind == "subscriber" else filter(None, [event.publisher]):
            heights[name].append(middles[event.name])
    wanted = sorted((sum(found) / len(found), name) for name, found in heights.items())
    placed: dict[str, float] = {}
    lowest = _SERVICE_HEIGHT / 2 + 2 - _SERVICE_GAP
    for y, name in wanted:
        lowest = placed[name] = max(y, lowest + _SERVICE_GAP)
    return placed


def _cord(
    start: tuple[float, float], end: tuple[float, float], colour: str, kind: str, service: str, event: EventType
) -> str:
    (x1, y1), (x2, y2) = start, end
    bend = (x2 - x1) * 0.5
    return (
        f'<path class="cord {colour}" data-kind="{kind}" data-service="{escape(service)}" '
        f'data-event="{escape(event.name)}" '
        f'd="M{x1:.1f},{y1:.1f} C{x1 + bend:.1f},{y1:.1f} {x2 - bend:.1f},{y2:.1f} {x2:.1f},{y2:.1f}"/>'
    )


def _event(x: float, y: float, width: float, colour: str, event: EventType) -> str:
    label = f"{event.name}: {event.description}; published by {event.publisher or 'no listed service'}; " + (
        f"subscribed to by {', '.join(event.subscribers)}" if event.subscribers else "no subscriber listed"
    )
    return (
        f'<a class="node event {colour}" href="#{escape(event.name)}" data-kind="event" '
        f'data-event="{escape(event.name)}" aria-label="{escape(label)}">'
        f'<rect x="{x:.1f}" y="{y - _EVENT_HEIGHT / 2:.1f}" width="{width:.1f}" height="{_EVENT_HEIGHT}" rx="12"/>'
        f'<text x="{x + width / 2:.1f}" y="{y:.1f}">{escape(event.name)}</text></a>'
    )


def _service(x: float, y: float, width: float, hue: int, kind: str, name: str) -> str:
    return (
        f'<a class="node service hue-{hue}" href="?q={escape(name)}" data-kind="{kind}" '
        f'data-service="{escape(name)}" aria-label="{escape(name)} as {kind}: show its events only">'
        f'<rect x="{x:.1f}" y="{y - _SERVICE_HEIGHT / 2:.1f}" width="{width:.1f}" height="{_SERVICE_HEIGHT}" '
        f'rx="9"/><text x="{x + width / 2:.1f}" y="{y:.1f}">{escape(name)}</text></a>'
    )
