"""The way in: from a delivery to its acknowledgement."""
