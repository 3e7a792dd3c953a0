"""The two doors of the WebRTC service, HTTP and gRPC, to the same use cases."""
