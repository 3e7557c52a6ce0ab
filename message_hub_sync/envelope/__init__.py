"""Messages and events as values, their names, ids and headers, and their encoding on the wire."""
