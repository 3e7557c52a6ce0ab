"""The pytest plugin, in runs of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


def run(pytester: pytest.Pytester, *arguments: str, environment: dict[str, str] | None = None) -> pytest.RunResult:
    """A run of pytest in a process of its own, with the plugin whether or not it is installed."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MESSAGE_HUB_TEST_URL", raising=False)
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    plugins = ("-p", "no:message_hub", "-p", "message_hub_sync_pytest", "-p", "no:cacheprovider")
    try:
        return pytester.runpytest_subprocess(*plugins, *arguments, timeout=120)
    finally:
        monkeypatch.undo()


TWO_HUNDRED = """
    import threading
    import pytest

    @pytest.mark.parametrize("number", range(200))
    def test_flow(message_hub, message_hub_client, number):
        campaign = message_hub.create_mock_service("campaign-service")
        campaign.subscribe_to_events(["character.created"])
        campaign.reply_with({"approved": True})
        message_hub_client.publish_event("character.created", {"character_id": str(number)})
        assert message_hub_client.request("campaign-service", {"number": number}).payload == {"approved": True}
        assert campaign.expect_event("character.created").payload == {"character_id": str(number)}
        assert len(campaign.events_received) == len(campaign.messages_received) == 1
"""

COUNTING = """
    import threading

    def pytest_sessionfinish(session):
        left = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
        print("threads left:", left)
"""


def test_two_hundred_tests_leave_no_thread(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TWO_HUNDRED)
    pytester.makeconftest(COUNTING)
    result = run(pytester, "-q", "-s")
    result.assert_outcomes(passed=200)
    assert "threads left: []" in result.stdout.str()


def test_a_test_that_does_not_ask_gets_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            ours = ("message_hub_sync", "pydantic", "pika")
            loaded = [name for name in sys.modules if name.partition(".")[0] in ours]
            assert loaded == []
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_importing_the_plugin_imports_nothing_but_pytest() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import message_hub_sync_pytest; "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['message_hub_sync_pytest']"


def test_the_client_is_the_service_that_the_conftest_names(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def message_hub_service_name():
            return "character-service"
        """
    )
    pytester.makepyfile(
        """
        def test_name(message_hub, message_hub_client):
            assert message_hub_client.service_name == "character-service"
            assert message_hub.client("character-service") is message_hub_client

        def test_each_has_a_hub_of_its_own(message_hub, message_hub_client):
            mock = message_hub.create_mock_service("llm-service")
            message_hub_client.send_message("llm-service", {})
            mock.expect_message()
        """
    )
    run(pytester).assert_outcomes(passed=2)


def test_a_failed_expectation_fails_the_test_with_its_text(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_broken(message_hub, message_hub_client):
            def broken(message):
                raise KeyError("race")

            message_hub_client.subscribe_messages(broken)
            mock = message_hub.create_mock_service("llm-service")
            mock.send_message("service-under-test", {"number": 1})
            mock.expect_message(within=0.2)
        """
    )
    result = run(pytester, "-q")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*AssertionError: llm-service received no message within 0.2 s",
            "E*nothing arrived",
            "E*handlers that failed meanwhile:",
            "E*test_broken.<locals>.broken failed on message *-* of service-under-test.messages: *: KeyError: 'race'",
        ]
    )


def test_the_option_names_the_hub(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_url(message_hub): assert message_hub.url == 'memory://shared'")
    run(pytester, "--message-hub-url", "memory://shared").assert_outcomes(passed=1)
    result = run(pytester, "--help")
    result.stdout.fnmatch_lines(["Message Hub:", "*--message-hub-url=URL*"])


RABBITMQ = """
    from message_hub_sync import MessageHubClient

    seen = []

    def test_one(rabbitmq_url):
        seen.append(rabbitmq_url)
        with MessageHubClient("service-a", rabbitmq_url) as client:
            client.subscribe_messages(lambda message: {"ok": True})
            assert client.request("service-a", {}).payload == {"ok": True}

    def test_two(rabbitmq_url):
        assert rabbitmq_url not in seen
        with MessageHubClient("service-a", rabbitmq_url) as client:
            subscription = client.subscribe_messages(print)
            assert client.get_queue_stats()["service-a.messages"] == {"depth": 0, "consumers": 1}
"""


@pytest.mark.rabbitmq
def test_each_test_gets_a_virtual_host_of_a_throwaway_node(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        RABBITMQ
        + """
    def test_node(rabbitmq_node, rabbitmq_url):
        assert len(rabbitmq_node.ctl("list_vhosts").split()) == 3  # the heading, the default one, this test's
        assert rabbitmq_url.startswith(rabbitmq_node.url)
"""
    )
    run(pytester).assert_outcomes(passed=3)


@pytest.mark.rabbitmq
def test_a_given_broker_is_used_instead_of_a_node(pytester: pytest.Pytester, rabbitmq_url: str) -> None:
    pytester.makepyfile(
        """
        def test_url(rabbitmq_url, request):
            print("url:", rabbitmq_url)
            assert "rabbitmq_node" not in request.fixturenames
        """
    )
    for result in (
        run(pytester, "-s", "--message-hub-url", rabbitmq_url),
        run(pytester, "-s", environment={"MESSAGE_HUB_TEST_URL": rabbitmq_url}),
    ):
        result.assert_outcomes(passed=1)
        assert f"url: {rabbitmq_url}\n" in result.stdout.str()


@pytest.mark.rabbitmq
def test_the_same_tests_run_on_a_broker(pytester: pytest.Pytester, rabbitmq_url: str) -> None:
    pytester.makepyfile(TWO_HUNDRED.replace("range(200)", "range(5)"))
    pytester.makeconftest(COUNTING)
    result = run(pytester, "-q", "-s", "--message-hub-url", rabbitmq_url)
    result.assert_outcomes(passed=5)
    assert "threads left: []" in result.stdout.str()
