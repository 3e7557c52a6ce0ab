"""What travels: messages and events as values, their names and ids, and how they become bytes."""
