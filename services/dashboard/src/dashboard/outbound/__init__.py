"""One module per dependency; each keeps a port."""
