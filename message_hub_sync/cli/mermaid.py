"""The catalogue as a Mermaid flowchart."""

from __future__ import annotations

from collections.abc import Sequence

from message_hub_sync.catalogue import EventType

__all__ = ["mermaid_flowchart"]


def mermaid_flowchart(events: Sequence[EventType]) -> str:
    """Services and events are nodes. Arrows go from publisher to event, and from event to subscriber."""
    # Numbered ids and quoted labels: a name as an id may contain Mermaid syntax ("end", a dash).
    services = {
        name: f"s{number}"
        for number, name in enumerate(dict.fromkeys(name for event in events for name in event.services), 1)
    }
    lines = ["flowchart LR"]
    lines += [f'    {identity}["{name}"]:::service' for name, identity in services.items()]
    for number, event in enumerate(events, 1):
        lines.append(f'    e{number}(["{event.name}"])')
        if event.publisher is not None:
            lines.append(f"    {services[event.publisher]} --> e{number}")
        lines += [f"    e{number} --> {services[name]}" for name in event.subscribers]
    lines.append("    classDef service font-weight:bold")
    return "\n".join(lines)
