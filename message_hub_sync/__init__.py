"""The synchronous, threaded client of the Message Hub."""
