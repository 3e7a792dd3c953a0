"""A simulated LLM provider that speaks the OpenAI wire format, every answer labelled as simulated."""
