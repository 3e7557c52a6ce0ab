"""The competitors. Each module has ``DISTRIBUTION`` and ``OPERATIONS``, and follows its library's documentation."""
