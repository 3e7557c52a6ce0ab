"""The competitors. Each is a module with ``DISTRIBUTION`` and ``OPERATIONS``, used as its own documentation advises."""
