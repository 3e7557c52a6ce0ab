"""Integrations of web frameworks. Each is a package of its own, imported by who uses it."""
