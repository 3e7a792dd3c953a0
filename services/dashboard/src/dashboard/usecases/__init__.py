"""What the Dashboard does, free of frameworks and drivers."""
