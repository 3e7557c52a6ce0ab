"""``python -m message_hub_sync.cli`` runs the command ``message-hub``."""

from message_hub_sync.cli import main

main()
