"""Publishing and consuming over a broker: one interface (``base``) and two transports that implement it."""
