"""A stand-in for providers of language models, embeddings and speech, for use without any key.

It speaks OpenAI's, Anthropic's and ElevenLabs' protocols over real HTTP, so that everything between AI Core and a
provider (connections, timeouts, circuits, failures) is real; only the words are not, and every answer says so. Its
admin API makes any of them fail in the ways in which providers do.
"""
