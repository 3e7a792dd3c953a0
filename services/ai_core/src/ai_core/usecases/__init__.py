"""What AI Core does, free of frameworks and drivers."""
