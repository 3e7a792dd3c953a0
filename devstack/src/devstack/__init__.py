"""The platform as processes on real servers, with a fault proxy on every edge; the auralink command."""
