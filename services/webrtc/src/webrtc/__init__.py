"""The WebRTC service: rooms, join tokens and ICE servers."""
