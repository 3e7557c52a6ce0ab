"""The way out: from a call to the receipt that the broker has the message."""
