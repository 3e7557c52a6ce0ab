# The daily checks, each with one word. `make setup` once, then `make check` before each commit.
# The tools stand in .venv; another environment: `make check BIN=/path/to/venv/bin`.

PYTHON ?= python3
BIN ?= .venv/bin
TOOLS = 'tox>=4.60' 'ruff>=0.15' 'mypy>=1.18' 'import-linter>=2.3' 'pre-commit>=3' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' \
	'freezegun>=1.5' 'hypothesis>=6' 'jsonschema>=4' 'click>=8.2' 'aio-pika>=9' 'django>=4.2' 'flask>=2.3'

# Left out of `make quick`: thousands of random frames and confirms, and 5 s of signals. `make test` runs them.
RABBITMQ = tests/unit/transport/rabbitmq
SLOW = --ignore=$(RABBITMQ)/frames/test_fast_frames.py \
	--deselect=$(RABBITMQ)/test_pending_acks.py::TestPendingAcks \
	--deselect=$(RABBITMQ)/test_outstanding_confirms.py::TestOutstandingConfirms \
	--deselect=$(RABBITMQ)/test_connection_gate.py::test_a_signal_at_the_end_of_a_wait_does_not_release_a_lock_that_another_thread_holds

.PHONY: help setup quick lint types layers check test faults gate

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

setup:  ## make .venv with the library and all tools
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -e '.[cli,test]' $(TOOLS)

quick:  ## the unit tests without the slow ones, over all cores; no RabbitMQ
	$(BIN)/python -m pytest -q -n auto --dist worksteal --timeout=300 -m "not rabbitmq" --hypothesis-profile=quick $(SLOW) tests/unit

lint:  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:  ## mypy --strict: the package, the public API as users see it, the examples
	$(BIN)/mypy message_hub_sync message_hub_sync_pytest.py
	$(BIN)/mypy tests/typing
	$(BIN)/mypy examples

layers:  ## who may import whom: the contracts in setup.cfg
	$(BIN)/lint-imports --no-cache

check: lint types layers quick  ## all of the above: before each commit

test:  ## everything, with tox: every Python, a real RabbitMQ
	$(BIN)/tox

faults:  ## every fault of docs/reliability.md, against brokers that it kills
	$(BIN)/tox -e faults

gate:  ## what a message costs, compared with benchmarks/baseline.json
	$(BIN)/tox -e gate
