"""From a delivery to its acknowledgement."""
