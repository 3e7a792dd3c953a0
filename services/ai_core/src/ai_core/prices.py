"""What a call costs: US dollars per million tokens, by the beginning of the model's name.

Sources: openai.com/api/pricing and anthropic.com/pricing, as known in 2025, standard tier, without discounts for cached
input or batches. A figure for people and budgets, not an invoice.
"""

from typing import NamedTuple

from ai_core.query import Usage


class Price(NamedTuple):
    """US dollars per million tokens."""

    prompt: float
    completion: float


PRICES = {
    "gpt-3.5-turbo": Price(0.50, 1.50),
    "gpt-4": Price(30.00, 60.00),
    "gpt-4-turbo": Price(10.00, 30.00),
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.40),
    "gpt-5": Price(1.25, 10.00),
    "gpt-5-mini": Price(0.25, 2.00),
    "gpt-5-nano": Price(0.05, 0.40),
    "o3": Price(2.00, 8.00),
    "o4-mini": Price(1.10, 4.40),
    "claude-opus-4": Price(15.00, 75.00),
    "claude-opus-4-5": Price(5.00, 25.00),
    "claude-sonnet-4": Price(3.00, 15.00),
    "claude-haiku-4-5": Price(1.00, 5.00),
    "claude-3-7-sonnet": Price(3.00, 15.00),
    "claude-3-5-haiku": Price(0.80, 4.00),
}


def price(model: str) -> Price | None:
    """By the longest name that the model's begins with, a version or date after it allowed; None when none does."""
    known = [name for name in PRICES if model == name or model.startswith((f"{name}-", f"{name}@"))]
    return PRICES[max(known, key=len)] if known else None


def cost(model: str, usage: Usage) -> float | None:
    """US dollars of a call; None when the model's price, or how many tokens it took, is not known."""
    known = price(model)
    if known is None or not (usage.prompt or usage.completion):
        return None
    return (usage.prompt * known.prompt + usage.completion * known.completion) / 1_000_000
