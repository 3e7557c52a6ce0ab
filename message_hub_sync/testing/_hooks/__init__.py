"""How the test framework observes a client and injects faults, from inside the client's process."""
