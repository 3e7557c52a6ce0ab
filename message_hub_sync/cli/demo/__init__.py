"""``message-hub demo``: four services talk along the events reference, and every delivery is accounted for."""
