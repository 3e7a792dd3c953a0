"""A stand-in for a language model provider, for use without any key.

It speaks the OpenAI wire format over real HTTP, so that everything between AI Core and a provider (connections,
timeouts, circuits, failures) is real; only the words are not, and every answer says so.
"""
