"""The `resilience` library against every Python peer, side by side in one run, on a no-op coroutine."""
