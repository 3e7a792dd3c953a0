"""Adapters to providers of language models, each the port ``ModelProvider``: OpenAI's protocol and Anthropic's."""

from ai_core.outbound.providers.anthropic import AnthropicModels
from ai_core.outbound.providers.openai import OpenAIModels

__all__ = ["AnthropicModels", "OpenAIModels"]
