"""The Dashboard service: accounts, sessions, and the door to rooms and agents."""
