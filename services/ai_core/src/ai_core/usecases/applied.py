"""Copies after queued writes have been applied: the newest state of what they changed."""

from collections.abc import Sequence

from ai_core.model import Agent, Conversation
from ai_core.ports import AgentCopies
from resilience import Result


async def refresh(copies: AgentCopies, results: Sequence[Result]) -> None:
    """Keeps what the writes have left; of several changes of one thing the last."""
    agents: dict[str, Agent] = {}
    for result in results:
        operation, value = result.operation, result.value
        given = operation.payload
        match operation.kind:
            case "agent.delete":
                agents.pop(given["id"], None)
                await copies.gone(operation.owner, given["id"])
            case "conversation.delete":
                await copies.forgotten(operation.owner, given["agent"], given["id"])
            case "conversation.append" if isinstance(value, Conversation):
                await copies.said(operation.owner, given["agent"], value)
            case _ if isinstance(value, Agent):
                agents[value.id] = value
    await copies.changed(list(agents.values()))
