"""``python -m message_hub_sync.cli`` is ``message-hub``."""

from message_hub_sync.cli import main

main()
