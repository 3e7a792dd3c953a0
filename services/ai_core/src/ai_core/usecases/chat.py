"""Chat with an agent through one provider (rows A1, ai_core.postgres, and A2, ai_core.providers).

The agent and the conversation are read, the provider answers, the exchange is written down. Once the provider has
answered, a database that is gone costs the memory of the exchange and not the answer.
"""

import uuid
from collections.abc import Sequence

from ai_core.degradation import UNSAVED_HISTORY
from ai_core.model import (
    HISTORY_CHARACTERS,
    Agent,
    AgentUnknown,
    Completion,
    Invalid,
    ModelNotOffered,
    Reply,
    Turn,
    checked,
    is_id,
    recent,
)
from ai_core.ports import AgentStore, ChatProvider, ModelUnknown, ProviderBusy, ProviderFailed
from resilience import Clock, RowPolicy, Rung, Served

LONGEST_REST = 600.0
"""Seconds that a provider's Retry-After is honoured at most."""


class Rest:
    """A provider that answered 429 with Retry-After is left alone until then; its circuit is not concerned."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = 0.0

    def check(self, provider: str) -> None:
        """Raises ProviderBusy with the remaining seconds while the rest lasts."""
        remaining = self._until - self._clock.monotonic()
        if remaining > 0:
            raise ProviderBusy(provider, remaining)

    def begin(self, seconds: float) -> None:
        """Rest from now on."""
        self._until = self._clock.monotonic() + min(seconds, LONGEST_REST)


class Provider:
    """One provider as the use case sees it: asked under its own circuit, left alone when it said so."""

    def __init__(self, provider: ChatProvider, policy: RowPolicy, clock: Clock) -> None:
        self._provider = provider
        self._policy = policy
        self._rest = Rest(clock)

    async def complete(self, model: str, turns: Sequence[Turn], *rungs: Rung[Completion]) -> Served[Completion]:
        """The provider's answer, or the first rung's that has one.

        Raises ProviderFailed, ProviderBusy, ModelUnknown, RequestRefused, and what the policy raises.
        """
        return await self._policy.serve(lambda: self._ask(model, turns), *rungs)

    async def _ask(self, model: str, turns: Sequence[Turn]) -> Completion:
        self._rest.check(self._provider.name)
        try:
            return await self._provider.complete(model, turns)
        except ProviderBusy as busy:
            if busy.retry_after is not None:
                self._rest.begin(busy.retry_after)
            raise


class Chat:
    """``default_model`` serves agents that name none."""

    def __init__(
        self, store: AgentStore, postgres: RowPolicy, provider: Provider, default_model: str, clock: Clock
    ) -> None:
        self._store = store
        self._postgres = postgres
        self._provider = provider
        self._default_model = default_model
        self._clock = clock

    async def reply(self, owner: str, agent_id: str, message: str, conversation_id: str = "") -> Served[Reply]:
        """The agent's answer to a message; an empty ``conversation_id`` begins a new conversation.

        Raises Invalid, AgentUnknown, ModelNotOffered, RequestRefused, and the failures of ports and policies.
        """
        conversation = _checked(agent_id, message, conversation_id)
        opened = await self._postgres.serve(lambda: self._store.conversation(owner, agent_id, conversation))
        agent, history = opened.value
        asked = Turn("user", message)
        answered = await self._ask(agent, [*recent(history), asked])
        saved = await self._remember(agent, conversation, [asked, _answer_turn(answered.value)])
        reply = answered.map(lambda completion: _reply(completion, conversation))
        return reply.also(*opened.degradations, *saved.degradations)

    async def _ask(self, agent: Agent, turns: Sequence[Turn]) -> Served[Completion]:
        system = [Turn("system", agent.system_prompt)] if agent.system_prompt else []
        try:
            return await self._provider.complete(agent.model or self._default_model, [*system, *turns])
        except ModelUnknown:
            if agent.model:
                raise ModelNotOffered from None
            raise ProviderFailed("the configured model is not offered") from None

    async def _remember(self, agent: Agent, conversation: str, turns: Sequence[Turn]) -> Served[None]:
        async def unsaved(_: BaseException) -> None:
            return None

        now = self._clock.time()
        return await self._postgres.serve(
            lambda: self._store.remember(agent, conversation, turns, now), Rung(UNSAVED_HISTORY, unsaved)
        )


def _checked(agent_id: str, message: str, conversation_id: str) -> str:
    """The conversation's id, new when none is given; an unknown one is a conversation without turns.

    Unknown ids are not refused because a conversation whose first exchange could not be saved must be able to go on.
    """
    checked({"message": message})
    if conversation_id and not is_id(conversation_id):
        raise Invalid({"conversation_id": "is no conversation's id"})
    if not is_id(agent_id):
        raise AgentUnknown
    return conversation_id or str(uuid.uuid4())


def _answer_turn(completion: Completion) -> Turn:
    """The answer as it is remembered: what PostgreSQL cannot hold is left out, and no more than fits the history."""
    text = completion.text.replace("\x00", "").encode("utf-8", "replace").decode()
    return Turn("assistant", text[: HISTORY_CHARACTERS // 2])


def _reply(completion: Completion, conversation: str) -> Reply:
    return Reply(completion.text, completion.provider, completion.model, conversation, completion.simulated)
