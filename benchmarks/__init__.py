"""How fast the library is beside its peers (``python -m benchmarks``), and what one message costs (``… gate``)."""
