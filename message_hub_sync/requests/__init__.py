"""Requests and replies: the side that asks (RequestCaller), and the side that answers (ReplySender)."""
