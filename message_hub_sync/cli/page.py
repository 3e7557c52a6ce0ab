"""The catalogue as one self-contained web page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from message_hub_sync import __version__
from message_hub_sync.catalogue import EventType
from message_hub_sync.catalogue.event_type import model_schema
from message_hub_sync.cli.picture import hues, svg_picture

__all__ = ["events_page", "type_text"]


def events_page(events: Sequence[EventType], service: str | None = None) -> str:
    """Build the HTML document: a diagram, a search field, and a card with the payload's schema for each event.

    :param events: the events to show.
    :param service: the service whose events they are, for the title; ``None`` if they are all events.
    """
    colours = hues(events)
    publishers = dict.fromkeys(event.publisher for event in events)
    parts = {
        "title": f"Events of {escape(service)}" if service else "Message Hub events",
        "summary": f"{len(events)} events between {len(colours)} services",
        "services": "\n".join(_filter(name, hue) for name, hue in colours.items()),
        "picture": svg_picture(events),
        "groups": "\n".join(
            _group(name, [event for event in events if event.publisher == name], colours) for name in publishers
        ),
        "version": escape(__version__),
    }
    page = resources.files("message_hub_sync.cli").joinpath("page.html").read_text(encoding="utf-8")
    before, *pieces = page.split("{{")
    # Split the template before filling it in: text that is filled in may contain "{{", and must not be replaced.
    return before + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces))


def _filter(name: str, hue: int) -> str:
    return f'<button type="button" class="filter hue-{hue}" data-query="{escape(name)}">{escape(name)}</button>'


def _group(publisher: str | None, events: Sequence[EventType], colours: Mapping[str, int]) -> str:
    heading = "Published by no listed service" if publisher is None else f"Published by {escape(publisher)}"
    colour = "hue-none" if publisher is None else f"hue-{colours[publisher]}"
    cards = "\n".join(_card(event, colours) for event in events)
    return f'<section class="group {colour}">\n<h3>{heading}</h3>\n<div class="cards">\n{cards}\n</div>\n</section>'


def _card(event: EventType, colours: Mapping[str, int]) -> str:
    schema = model_schema(event.model)
    fields = schema.get("properties", {})
    text = " ".join([event.name, event.description, event.model.__name__, *event.services, *fields]).lower()
    chips = "".join(f'<li class="chip hue-{colours[name]}">{escape(name)}</li>' for name in event.subscribers)
    subscribers = f'<ul class="chips">{chips}</ul>' if chips else '<span class="muted">none listed</span>'
    required = schema.get("required", [])
    rows = "\n".join(_row(name, field, name in required) for name, field in fields.items())
    raw = escape(json.dumps(schema, indent=2), quote=False)
    more = "" if schema.get("additionalProperties") is not True else '<p class="muted">Further fields are kept.</p>'
    name = escape(event.name)
    return f"""<article class="card" id="{name}" data-text="{escape(text)}" aria-labelledby="{name}-name">
<h4 id="{name}-name"><a href="#{name}">{name}</a></h4>
<p class="meaning">{escape(event.description)}</p>
<p class="muted">{_prose(schema)}</p>
<div class="subscribers"><span class="label">Subscribers</span>{subscribers}</div>
<table><caption class="unseen">Payload of {name}</caption>
<thead><tr><th scope="col">Field</th><th scope="col">Type</th><th scope="col">Meaning</th></tr></thead>
<tbody>
{rows}
</tbody></table>
{more}
<details><summary>JSON Schema <span class="unseen">of {name}</span></summary>
<pre tabindex="0">{raw}</pre></details>
</article>"""


def _row(name: str, field: Mapping[str, Any], required: bool) -> str:
    mark = ' <span class="required">required</span>' if required else ""
    return (
        f'<tr><th scope="row"><code>{escape(name)}</code>{mark}</th><td>{escape(type_text(field))}</td>'
        f"<td>{_prose(field)}</td></tr>"
    )


def _prose(schema: Mapping[str, Any]) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(str(schema.get("description", ""))))


def type_text(schema: Mapping[str, Any]) -> str:
    """Describe a JSON Schema in a few words, for example ``list of text or object``. The type null is left out."""
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            words = [type_text(item) for item in schema[choice] if item.get("type") != "null"]
            return " or ".join(dict.fromkeys(words)) or "null"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema or "const" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        items = type_text(schema.get("items", {}))
        return "list" if items == "anything" else f"list of {items}"
    if kind == "string":
        return {"date-time": "time (ISO 8601)", "uuid": "UUID"}.get(schema.get("format", ""), "text")
    return {"integer": "whole number", "boolean": "true or false"}.get(str(kind), str(kind or "anything"))
