"""The Dashboard over HTTP: ``/api/v1`` and the console."""
