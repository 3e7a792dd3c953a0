"""The two doors of AI Core, HTTP and gRPC, to the same use cases."""
