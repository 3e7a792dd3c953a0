"""Signalling: who is in which room on this instance, and what they say to each other."""
