"""What talks to a real store; opt-in, never imported by the core."""
