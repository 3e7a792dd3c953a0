"""What AI Core talks to: one module per dependency."""
