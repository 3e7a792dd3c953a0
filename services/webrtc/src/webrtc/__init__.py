"""The WebRTC service: rooms, tokens to join them, and ICE servers."""
