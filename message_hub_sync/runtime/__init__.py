"""The process that this library runs in: its kind, deadlines, forks, signals, log and texts."""
