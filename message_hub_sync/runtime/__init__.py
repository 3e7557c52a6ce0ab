"""This process: what runs it, its deadlines, forks and signals, its log."""
