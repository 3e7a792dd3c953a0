"""What the WebRTC service does, free of frameworks and drivers."""
