"""Speed of this library and of other libraries (``python -m benchmarks``), and the cost of one message (``… gate``)."""
