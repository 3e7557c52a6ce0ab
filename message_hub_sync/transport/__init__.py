"""How messages leave and enter this process: one seam (``base``), two transports behind it."""
