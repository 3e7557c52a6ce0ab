"""From a call that sends to the broker's confirm."""
