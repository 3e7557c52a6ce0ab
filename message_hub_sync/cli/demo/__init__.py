"""``message-hub demo``: four services publish and handle the events of the catalogue; every delivery is checked."""
