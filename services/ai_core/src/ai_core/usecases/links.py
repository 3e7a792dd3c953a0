"""One link of the provider chain with everything that guards it: circuit, places, limits of time, rest."""

from collections.abc import Callable
from typing import NamedTuple

from ai_core import prices
from ai_core.ports import ModelProvider, ModelUnknown, ProviderBusy
from ai_core.query import Completion, Link, Query, Usage
from ai_core.usecases.rest import SHORTEST_REST, UNKNOWN_REST, Rest
from resilience import BulkheadFull, CircuitBreakerOpen, Clock, RowPolicy, deadline_scope

TRIAL = Query(messages=({"role": "user", "content": "Say OK."},), tenant="", parameters={"max_tokens": 16}, keep=False)
"""What a link is asked to find out whether it really serves again."""


class Attempt(NamedTuple):
    """One call of a provider that ended. Times in seconds, ``began`` in unix seconds; ``error`` is "" for a success."""

    link: Link
    streamed: bool
    began: float
    seconds: float
    first_token: float | None = None
    model: str = ""
    usage: Usage = Usage()
    finish_reason: str = ""
    cost: float | None = None
    error: str = ""


Meter = Callable[[Attempt], None]
"""Told of every attempt."""


def unmetered(_: Attempt) -> None:
    """For who counts nothing."""


class GuardedLink:
    """A model of a provider, asked under its own circuit, and left alone while it wants that.

    The policy's timeout is the limit for a whole answer.
    """

    def __init__(
        self,
        link: Link,
        provider: ModelProvider,
        policy: RowPolicy,
        clock: Clock,
        *,
        rest: Rest | None = None,
        meter: Meter = unmetered,
    ) -> None:
        self.link = link
        self.provider = provider
        self.policy = policy
        self.rest = rest or Rest(clock)
        self.meter = meter
        self.clock = clock

    @property
    def name(self) -> str:
        return self.link.name

    def wait(self) -> float:
        """Seconds until it may be tried again; 0 when it may be now; infinite while an operator holds its circuit."""
        breaker = self.policy.breaker
        held = float("inf") if breaker.held and breaker.state.header == "open" else 0.0
        return max(self.rest.remaining, breaker.retry_after() or 0.0, held)

    def check(self) -> None:
        """Raises ProviderBusy while it rests."""
        if remaining := self.rest.remaining:
            raise ProviderBusy(self.name, remaining)

    async def complete(self, asked: Query, limit: float) -> Completion:
        """The model's answer within ``limit`` seconds.

        Raises what the provider and the policy raise; and ProviderBusy, without a call, while the link rests.
        """
        self.check()
        began, started = self.clock.time(), self.clock.monotonic()
        try:
            with deadline_scope(limit, clock=self.clock):
                answer = await self.policy.call(self.provider.complete, self.link.model, asked)
        except Exception as error:
            self.failed(error)
            if not isinstance(error, CircuitBreakerOpen | BulkheadFull):
                self.meter(self._attempt(began, started, error=type(error).__name__))
            raise
        cost = self.cost(answer.usage, simulated=answer.simulated)
        self.meter(
            self._attempt(
                began,
                started,
                model=answer.model,
                usage=answer.usage,
                finish_reason=answer.finish_reason,
                cost=cost,
            )
        )
        return answer.also(cost=cost)

    def failed(self, error: Exception) -> None:
        """Rest when the provider asked for it, or does not have the model."""
        if isinstance(error, ModelUnknown):
            self.rest.begin(UNKNOWN_REST)
        elif isinstance(error, ProviderBusy):
            self.rest.begin(SHORTEST_REST if error.retry_after is None else error.retry_after)

    def cost(self, usage: Usage, *, simulated: bool) -> float | None:
        """US dollars of a call; nothing for a simulated one."""
        return 0.0 if simulated else prices.cost(self.link.model, usage)

    async def trial(self) -> None:
        """One short call, for who guards it himself. Raises as the provider does; none is made while the link rests."""
        self.check()
        try:
            await self.provider.complete(self.link.model, TRIAL)
        except Exception as error:
            self.failed(error)
            raise

    def _attempt(self, began: float, started: float, **found: object) -> Attempt:
        seconds = self.clock.monotonic() - started
        return Attempt(self.link, False, began, seconds, **found)  # type: ignore[arg-type]
