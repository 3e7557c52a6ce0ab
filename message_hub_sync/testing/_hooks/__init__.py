"""What watches a client from inside its process, for the test framework."""
