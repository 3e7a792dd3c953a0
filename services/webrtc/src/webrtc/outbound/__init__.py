"""What the WebRTC service talks to: one module per dependency."""
