"""The doors: HTTP, gRPC and the pages."""
