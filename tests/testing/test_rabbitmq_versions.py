"""Nodes of another version: which one is chosen, what is said when there is none, and what a failed build leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from message_hub_sync import MessageValidationError
from message_hub_sync.testing import RabbitMQNode, RabbitMQNotAvailableError
from message_hub_sync.testing._node import debian_folder, rabbitmq_versions
from message_hub_sync.testing._node.rabbitmq_install import RabbitMQPrograms

INSTALLED = RabbitMQPrograms(("server",), ("ctl",), ("epmd",))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A machine on which 3.10.8 is installed. Returns the releases that have been built there."""
    built: list[str] = []

    def build(suite: str) -> str:
        version = {"trixie": "4.0.5", "sid": "4.3.6"}[suite]
        (debian_folder.folders() / version).mkdir()
        built.append(suite)
        return version

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(rabbitmq_versions, "find_rabbitmq", lambda: INSTALLED)
    monkeypatch.setattr(rabbitmq_versions, "version_of", lambda programs: "3.10.8")
    monkeypatch.setattr(rabbitmq_versions, "why_not_build", lambda install: None if install else "it may not")
    monkeypatch.setattr(rabbitmq_versions, "build", build)
    monkeypatch.setattr(debian_folder, "_why_not_enter", lambda: None)
    return built


def root_of(wanted: str) -> str | None:
    """The folder whose RabbitMQ is chosen, None for the installed one."""
    programs = rabbitmq_versions.programs_of_version(wanted, install=True)
    if programs is INSTALLED:
        return None
    return next(Path(word).name for word in programs.server if word.startswith(str(debian_folder.folders())))


@pytest.mark.parametrize(
    ("wanted", "version", "suites"),
    [
        ("3", None, []),
        ("3.10.8", None, []),
        ("4", "4.3.6", ["sid"]),
        ("4.3", "4.3.6", ["sid"]),
        ("4.3.6", "4.3.6", ["sid"]),
        ("4.0", "4.0.5", ["trixie"]),
    ],
)
def test_the_newest_version_that_fits_is_chosen_and_built_once(
    machine: list[str], wanted: str, version: str | None, suites: list[str]
) -> None:
    assert root_of(wanted) == version
    assert root_of(wanted) == version
    assert machine == suites


def test_a_built_version_does_not_hide_a_newer_release(machine: list[str]) -> None:
    assert root_of("4.0") == "4.0.5"
    assert root_of("4") == "4.3.6"


@pytest.mark.parametrize("wanted", ["9", "4.1", "3.1", "3.10.80"])
def test_a_version_that_there_is_not_is_an_error_that_lists_those_there_are(machine: list[str], wanted: str) -> None:
    root_of("4.0")
    with pytest.raises(RabbitMQNotAvailableError) as error:
        root_of(wanted)
    assert f"RabbitMQ {wanted} cannot be had here. On this machine: 4.0.5, 3.10.8." in str(error.value)
    assert "4.0 (trixie), 4.3 (sid)" in str(error.value)


def test_a_version_of_which_the_release_has_another_is_an_error_after_it_was_built(machine: list[str]) -> None:
    with pytest.raises(RabbitMQNotAvailableError, match=r"4\.3\.1 cannot be had here\. On this machine: 4\.3\.6"):
        root_of("4.3.1")


def test_a_version_that_may_not_be_built_is_an_error_with_the_reason(machine: list[str]) -> None:
    with pytest.raises(RabbitMQNotAvailableError, match=r"4\.3 is in Debian sid .* but it may not\. .*3\.10\.8"):
        rabbitmq_versions.programs_of_version("4.3", install=False)
    assert machine == []


def test_another_process_that_has_built_it_meanwhile_spares_the_second_build(
    machine: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_process(install: bool) -> None:
        (debian_folder.folders() / "4.3.6").mkdir(parents=True)

    monkeypatch.setattr(rabbitmq_versions, "why_not_build", other_process)
    assert root_of("4.3") == "4.3.6"
    assert machine == []


@pytest.mark.parametrize("step", ["debootstrap", "chroot"])
def test_a_build_that_fails_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    ran = []

    def run(what: str, command: list[str]) -> None:
        ran.append(what)
        if step in command:
            raise RabbitMQNotAvailableError(f"{what} failed (exit code 1):\nno space left")
        (debian_folder.folders() / "building-sid/usr/sbin").mkdir(parents=True)
        (debian_folder.folders() / "building-sid/etc").mkdir()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(debian_folder, "_run", run)
    monkeypatch.setattr(debian_folder, "_mirror", lambda: ["http://mirror/debian/"])
    monkeypatch.setattr(debian_folder.shutil, "which", lambda program: f"/usr/bin/{program}")
    with debian_folder.one_builder(), pytest.raises(RabbitMQNotAvailableError, match="no space left"):
        debian_folder.build("sid")
    assert debian_folder.built_versions() == []
    assert [path.name for path in debian_folder.folders().iterdir()] == ["lock"]


def test_a_step_of_a_build_that_never_ends_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_folder, "_STEP_TIMEOUT", 0.2)
    # The child keeps the output open: without the kill of the group the call would wait for it.
    with pytest.raises(RabbitMQNotAvailableError, match=r"it did not end within 0\.2 s"):
        debian_folder._run("it", ["/bin/sh", "-c", "sleep 600 & sleep 600"])


@pytest.mark.parametrize("version", [4.3, 4, "", "4.", "sid", "4.3.6.1", "v4.3", "4.3\n", b"4.3"])
def test_a_version_that_is_none_is_refused_at_once(version: object) -> None:
    with pytest.raises(MessageValidationError, match=r'version must be text such as "4\.3", not'):
        RabbitMQNode(version=version)  # type: ignore[arg-type]


def test_the_variable_gives_each_node_without_a_version_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_HUB_TEST_RABBITMQ", "9.9")
    with pytest.raises(RabbitMQNotAvailableError, match=r"RabbitMQ 9\.9 cannot be had"):
        RabbitMQNode().start()
    with pytest.raises(RabbitMQNotAvailableError, match=r"RabbitMQ 8\.8 cannot be had"):
        RabbitMQNode(version="8.8").start()
    monkeypatch.setenv("MESSAGE_HUB_TEST_RABBITMQ", "newest")
    with pytest.raises(MessageValidationError, match="not 'newest'"):
        RabbitMQNode()
    monkeypatch.setenv("MESSAGE_HUB_TEST_RABBITMQ", "")
    RabbitMQNode()


@pytest.mark.rabbitmq
def test_a_node_tells_its_real_version() -> None:
    with pytest.raises(Exception, match="has not been started"):
        _ = RabbitMQNode().version
    with RabbitMQNode(install=True) as node:
        running = node.ctl("eval", "io:format(rabbit_misc:version()).")
        assert running.startswith(node.version)
        assert node.version.count(".") == 2
