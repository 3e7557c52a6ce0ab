"""``message-hub consume``: plain workers, in one process or in several that a supervisor starts."""
