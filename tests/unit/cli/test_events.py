"""``message-hub events``: what it prints, writes and refuses."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema  # type: ignore[import-untyped,unused-ignore]
import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel, Field, RootModel

from message_hub_sync import __version__
from message_hub_sync.catalogue import Catalogue, EventType, catalogue
from message_hub_sync.cli.app import main
from message_hub_sync.cli.asyncapi import asyncapi_document
from message_hub_sync.cli.mermaid import mermaid_flowchart
from message_hub_sync.cli.page import events_page, type_text

ROOT = Path(__file__).parents[3]
ASYNCAPI_SCHEMA = ROOT / "tests" / "unit" / "catalogue" / "asyncapi" / "3.0.0.json"
NAMES = [event.name for event in catalogue]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["events", *arguments])


def output(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- table -----------------------------------------------------------------------------------------


def test_without_a_terminal_the_table_is_plain_text_with_one_line_an_event() -> None:
    lines = output().splitlines()

    assert [line.split()[0] for line in lines] == ["Event", *NAMES]
    theme = next(line for line in lines if line.startswith("campaign.theme_changed"))
    assert re.split(r" {2,}", theme) == [
        "campaign.theme_changed",
        "Campaign theme updated",
        "campaign-service",
        "character-service, image-service, llm-service",
    ]
    assert all(" " <= character <= "~" for line in lines for character in line)


def test_on_a_terminal_the_table_is_coloured() -> None:
    """A pseudo-terminal is one: the command runs as users run it."""
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "140", "PYTHONPATH": str(ROOT), "PATH": os.defpath}
    command = [sys.executable, "-m", "message_hub_sync.cli", "events"]
    with subprocess.Popen(command, stdout=theirs, stdin=theirs, stderr=theirs, env=environment, cwd=ROOT) as child:
        os.close(theirs)
        shown = read_terminal(ours, deadline=time.monotonic() + 60)
        assert child.wait(timeout=10) == 0

    assert "\x1b[" in shown
    assert "Events of the Message Hub" in shown
    assert all(name in shown for name in NAMES)


def read_terminal(terminal: int, deadline: float) -> str:
    """All that is written to a pseudo-terminal until its other side is closed."""
    read = b""
    try:
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(terminal, 65536)
            if not piece:
                break
            read += piece
        else:
            pytest.fail("the command did not end in time")
    except OSError as error:
        # Linux says so when the last writer has gone.
        if error.errno != errno.EIO:
            raise
    finally:
        os.close(terminal)
    return read.decode()


def test_a_service_narrows_every_format_to_its_events(tmp_path: Path) -> None:
    own = [event.name for event in catalogue.of_service("llm-service")]
    page = tmp_path / "events.html"

    assert [line.split()[0] for line in output("--service", "llm-service").splitlines()[1:]] == own
    assert [event["name"] for event in json.loads(output("--service", "llm-service", "--format", "json"))] == own
    assert set(re.findall(r'\(\["([^"]+)"\]\)', output("--service", "llm-service", "--format", "mermaid"))) == set(own)
    assert list(json.loads(output("--service", "llm-service", "--format", "asyncapi"))["channels"]) == own
    output("--service", "llm-service", "--html", str(page))
    assert Page.of(page).cards == own


def test_an_unknown_service_is_a_usage_error_that_names_the_known_ones() -> None:
    result = run("--service", "lmm-service")

    assert result.exit_code == 2
    shown = " ".join(result.stderr.split())
    assert "lmm-service" in shown
    assert all(service in shown for service in catalogue.services())
    assert result.stdout == ""


def test_an_unknown_format_is_a_usage_error() -> None:
    assert run("--format", "yaml").exit_code == 2


# --- json ------------------------------------------------------------------------------------------


def test_json_is_the_list_of_all_events_with_their_schemas() -> None:
    document = json.loads(output("--format", "json"))

    assert [event["name"] for event in document] == NAMES
    for event in document:
        assert list(event) == ["name", "description", "publisher", "subscribers", "schema"]
        jsonschema.Draft202012Validator.check_schema(event["schema"])
        assert event["schema"]["required"]


# --- mermaid ---------------------------------------------------------------------------------------


def test_mermaid_draws_exactly_the_arrows_of_the_catalogue() -> None:
    lines = [line.strip() for line in output("--format", "mermaid").splitlines()]

    assert lines[0] == "flowchart LR"
    labels = {
        found[1]: found[2] for line in lines if (found := re.fullmatch(r'(\w+)\(?\["([^"]+)"\]\)?(:::\w+)?', line))
    }
    arrows = {
        (labels[found[1]], labels[found[2]]) for line in lines if (found := re.fullmatch(r"(\w+) --> (\w+)", line))
    }
    assert arrows == {
        *((event.publisher, event.name) for event in catalogue if event.publisher),
        *((event.name, service) for event in catalogue for service in event.subscribers),
    }


def test_mermaid_gives_services_that_differ_in_a_dash_two_nodes() -> None:
    own = Catalogue()
    own.register("end.reached", Quest, publisher="a-b", subscribers=["a_b"])

    chart = mermaid_flowchart(tuple(own))
    assert 's1["a-b"]' in chart
    assert 's2["a_b"]' in chart


# --- asyncapi --------------------------------------------------------------------------------------


def asyncapi_validator() -> Any:
    schema = json.loads(ASYNCAPI_SCHEMA.read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(schema)


class Quest(BaseModel):
    """A quest, with a <b>tag</b> & "quotes"."""

    class Reward(BaseModel):
        gold: int

    quest_id: str
    rewards: list[Reward] = []


def resolve(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def references(document: Any) -> list[str]:
    if isinstance(document, dict):
        own = [document["$ref"]] if isinstance(document.get("$ref"), str) else []
        return own + [found for value in document.values() for found in references(value)]
    return [found for value in document for found in references(value)] if isinstance(document, list) else []


def test_the_asyncapi_projects_own_schema_validates_the_document() -> None:
    document = json.loads(output("--format", "asyncapi"))

    asyncapi_validator().validate(document)
    for service in catalogue.services():
        asyncapi_validator().validate(asyncapi_document(catalogue.of_service(service), service))


def test_the_asyncapi_projects_own_schema_refuses_a_broken_document() -> None:
    document = json.loads(output("--format", "asyncapi"))
    document["operations"]["character-service.send.character.created"]["action"] = "publish"

    assert not asyncapi_validator().is_valid(document)


def test_asyncapi_has_a_channel_per_event_and_an_operation_per_publisher_and_subscriber() -> None:
    document = json.loads(output("--format", "asyncapi"))

    assert document["asyncapi"] == "3.0.0"
    assert list(document["channels"]) == NAMES
    for name, channel in document["channels"].items():
        assert channel["address"] == name
        assert channel["bindings"]["amqp"]["exchange"] == {
            "name": "events",
            "type": "topic",
            "durable": True,
            "autoDelete": False,
        }
    operations = {
        (operation["tags"][0]["name"], operation["action"], resolve(document, operation["channel"]["$ref"])["address"])
        for operation in document["operations"].values()
    }
    assert operations == {
        *((event.publisher, "send", event.name) for event in catalogue if event.publisher),
        *((service, "receive", event.name) for event in catalogue for service in event.subscribers),
    }
    received = document["operations"]["llm-service.receive.character.created"]
    assert received["x-queue"] == "llm-service.character.created"


def test_asyncapi_of_a_service_has_only_its_own_operations() -> None:
    document = json.loads(output("--service", "image-service", "--format", "asyncapi"))

    assert {operation["tags"][0]["name"] for operation in document["operations"].values()} == {"image-service"}


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    own = Catalogue(catalogue)
    own.register("quest.started", Quest)
    # The same class name twice, as two services may have it.
    own.register("quest.ended", type("Quest", (BaseModel,), {"__module__": "elsewhere"}))
    document = asyncapi_document(tuple(own))

    asyncapi_validator().validate(document)
    found = references(document)
    assert len(found) > len(own)
    for reference in found:
        assert isinstance(resolve(document, reference), dict), reference
    payloads = [document["components"]["messages"][name]["payload"] for name in ("quest.started", "quest.ended")]
    assert payloads[0] != payloads[1]


# --- page ------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page consists of, as far as the tests ask."""

    VOID = frozenset({"meta", "input", "link", "img", "br", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.cards: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.cords: set[tuple[str, str, str]] = set()
        self.tags: list[str] = []

    @classmethod
    def of(cls, source: Path | str) -> Page:
        page = cls()
        page.feed(source if isinstance(source, str) else source.read_text(encoding="utf-8"))
        page.close()
        assert page.open == []
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.loaded += [values[name] for name in ("src", "srcset", "data", "poster", "xlink:href") if name in values]
        if tag == "link":
            self.loaded.append(values.get("href", ""))
        if tag == "a":
            self.links.append(values["href"])
        if values.get("class") == "card":
            self.cards.append(values["id"])
        if tag == "path":
            self.cords.add((values["data-kind"], values["data-service"], values["data-event"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_the_page_is_written_and_said_to_be_on_standard_error(tmp_path: Path) -> None:
    page = tmp_path / "events.html"
    result = run("--html", str(page))

    assert result.exit_code == 0
    assert result.stdout == ""
    assert str(page) in result.stderr.replace("\n", "")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_can_be_written_beside_another_format(tmp_path: Path) -> None:
    page = tmp_path / "events.html"

    assert json.loads(output("--html", str(page), "--format", "json"))
    assert page.exists()


def test_a_page_that_cannot_be_written_ends_with_an_error_that_says_why(tmp_path: Path) -> None:
    result = run("--html", str(tmp_path / "absent" / "events.html"))

    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr


def test_the_page_has_a_card_for_every_event_and_its_links_lead_to_them() -> None:
    page = Page.of(events_page(tuple(catalogue)))

    assert sorted(page.cards) == sorted(NAMES)
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} == set(NAMES)


def test_the_picture_draws_exactly_who_publishes_what_to_whom() -> None:
    assert Page.of(events_page(tuple(catalogue))).cords == {
        *(("publisher", event.publisher, event.name) for event in catalogue if event.publisher),
        *(("subscriber", service, event.name) for event in catalogue for service in event.subscribers),
    }


def test_the_page_needs_nothing_but_itself() -> None:
    html = events_page(tuple(catalogue))

    assert Page.of(html).loaded == []
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|@import|url\(|\bfetch\(|XMLHttpRequest", html)


def test_every_payloads_schema_can_be_read_on_the_page() -> None:
    html = events_page(tuple(catalogue))

    for event in catalogue:
        card = html.partition(f'id="{event.name}"')[2].partition("</article>")[0]
        for name, field in event.model.model_fields.items():
            assert f"<code>{name}</code>" in card
            assert (
                "required" in card.partition(f"<code>{name}</code>")[2].partition("</tr>")[0]
            ) is field.is_required()
        assert f'"title": "{event.model.__name__}"' in card


def test_what_a_service_registers_is_shown_as_text_and_never_as_markup() -> None:
    own = Catalogue()
    own.register("quest.started", Quest, publisher="quest-service", description="<script>alert('{{title}}')</script>")
    html = events_page(tuple(own))

    assert Page.of(html).tags.count("script") == 1
    assert "&lt;script&gt;alert(&#x27;{{title}}&#x27;)&lt;/script&gt;" in html
    assert "&lt;b&gt;tag&lt;/b&gt; &amp; &quot;quotes&quot;" in html


def test_a_page_without_events_is_still_a_page() -> None:
    assert Page.of(events_page(())).cards == []


def test_services_in_the_picture_never_cover_each_other() -> None:
    own = Catalogue()
    for number in range(8):
        own.register(f"quest.step{number}", Quest, publisher=f"s{number}", subscribers=[f"t{9 - number}"])
    html = events_page(tuple(own))
    boxes = [
        (float(found[1]), float(found[2]))
        for found in re.finditer(r'<a class="node service.*?<rect x="([\d.]+)" y="([\d.]+)"', html)
    ]

    assert len(boxes) == 16
    for column in {x for x, _ in boxes}:
        heights = sorted(y for x, y in boxes if x == column)
        assert all(below - above >= 40 for above, below in pairwise(heights))
    height = float(re.findall(r'<svg viewBox="0 0 [\d.]+ ([\d.]+)"', html)[0])
    assert max(y for _, y in boxes) + 40 <= height


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "text"),
        ({"type": "string", "format": "uuid"}, "UUID"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "whole number"),
        ({"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "null"}]}, "text or object"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"type": "array", "items": {}}, "list"),
        ({"$ref": "#/$defs/Reward"}, "Reward"),
        ({"enum": ["a", 1]}, '"a" or 1'),
        ({"const": "a"}, '"a"'),
        ({"type": "boolean"}, "true or false"),
        ({}, "anything"),
        ({"type": "null"}, "null"),
    ],
)
def test_a_schema_is_put_in_a_few_words(schema: dict[str, Any], text: str) -> None:
    assert type_text(schema) == text


# --- the command itself ----------------------------------------------------------------------------


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(main, ["--version"])

    assert result.exit_code == 0
    assert result.stdout == f"message-hub, version {__version__}\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_command_says_how_to_get_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from message_hub_sync.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"message-hub needs {missing}, which is not installed: pip install 'message-hub-sync[cli]'"
    )


def test_a_module_that_is_missing_for_another_reason_is_not_hidden() -> None:
    code = "import sys; sys.modules['pydantic'] = None; from message_hub_sync.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert "ModuleNotFoundError" in result.stderr
    assert "message-hub-sync[cli]" not in result.stderr


def test_an_event_type_is_all_that_a_document_needs() -> None:
    alone = EventType("quest.started", "", None, (), Quest)

    assert "quest.started" in mermaid_flowchart([alone])
    assert Page.of(events_page([alone])).cards == ["quest.started"]


class Cat(BaseModel):
    kind: Literal["cat"]
    inner: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None


class Dog(BaseModel):
    kind: Literal["dog"]
    discriminator: str = ""


class Pets(BaseModel):
    """Discriminated unions, alone, in a list and in each other."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    more: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []


class Uncallable(BaseModel):
    """A model that JSON Schema cannot describe."""

    answer: Callable[[int], int]


class Outer(BaseModel):
    inner: Uncallable


class OneOfThem(RootModel[Annotated[Cat | Dog, Field(discriminator="kind")]]):
    """A discriminated union is the whole payload."""


def test_discriminated_unions_are_valid_in_asyncapi() -> None:
    document = asyncapi_document(
        [EventType("pets.came", "", None, (), Pets), EventType("pets.went", "", None, (), OneOfThem)]
    )

    asyncapi_validator().validate(document)
    assert len(document["components"]["schemas"]["Pets"]["properties"]["pet"]["oneOf"]) == 2
    assert "discriminator" in document["components"]["schemas"]["Dog"]["properties"]
    assert "propertyName" not in json.dumps(document)


def test_a_model_without_a_schema_is_named_and_the_others_are_described() -> None:
    events = [
        EventType("quest.begun", "", None, (), Quest),
        EventType("quest.answered", "", None, (), Uncallable),
        EventType("quest.nested", "", None, (), Outer),
    ]

    document = asyncapi_document(events)

    asyncapi_validator().validate(document)
    payloads = {name: message["payload"] for name, message in document["components"]["messages"].items()}
    assert payloads["quest.begun"] == {"$ref": "#/components/schemas/Quest"}
    assert payloads["quest.answered"]["description"].startswith("Uncallable has no JSON Schema: ")
    assert payloads["quest.nested"]["title"] == "Outer"
    assert [event.as_dict()["schema"]["title"] for event in events] == ["Quest", "Uncallable", "Outer"]
    assert "Uncallable has no JSON Schema" in events_page(events)


def test_a_document_of_models_without_a_schema_only_is_a_document() -> None:
    asyncapi_validator().validate(asyncapi_document([EventType("quest.answered", "", None, (), Uncallable)]))
