"""The AI Core service: agents and the provider chain."""
