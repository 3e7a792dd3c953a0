"""AI Core: agents, and chat with them through a language model provider."""
