"""OpenAI's messages as Anthropic's: system texts apart, contents as blocks, results of tools in the user's turns.

Sources: Anthropic API reference, "Create a Message"; "Vision"; "Handle tool calls".
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from ai_core.ports import CannotCarry

Json = Mapping[str, Any]
Block = dict[str, Any]

_DATA_URL = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,(.+)", re.DOTALL)
_SHAPES = (TypeError, KeyError, AttributeError, ValueError)
_SYSTEM = ("system", "developer")


def conversation(messages: Sequence[Json]) -> tuple[str, list[Block]]:
    """The system text and the turns. Raises CannotCarry.

    System messages come first there, wherever they were. A last turn of the assistant's would be continued there, not
    answered.
    """
    system: list[str] = []
    turns: list[Block] = []
    for message in messages:
        try:
            _append(system, turns, message)
        except _SHAPES:
            raise CannotCarry("messages") from None
    if not turns or turns[-1]["role"] != "user":
        raise CannotCarry("messages")
    return "\n\n".join(system), turns


def _append(system: list[str], turns: list[Block], message: Json) -> None:
    role = message["role"]
    if message.get("name") and role != "tool":
        raise CannotCarry("messages.name")
    if role in _SYSTEM:
        system.extend(_texts(message["content"]))
        return
    speaker = "assistant" if role == "assistant" else "user"
    blocks = list(_BLOCKS[role](message))
    if turns and turns[-1]["role"] == speaker:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": speaker, "content": blocks})


def _user(message: Json) -> Iterator[Block]:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for part in content:
        yield from _part(part)


def _assistant(message: Json) -> Iterator[Block]:
    if message.get("function_call") or message.get("audio"):
        raise CannotCarry("messages.function_call" if message.get("function_call") else "messages.audio")
    for text in _texts(message.get("content") or message.get("refusal") or ""):
        yield {"type": "text", "text": text}
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = orjson.loads(function["arguments"] or b"{}")
        yield {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _tool(message: Json) -> Iterator[Block]:
    result = {"type": "tool_result", "tool_use_id": message["tool_call_id"]}
    content = [{"type": "text", "text": text} for text in _texts(message["content"])]
    yield {**result, "content": content} if content else result


_BLOCKS = {"user": _user, "assistant": _assistant, "tool": _tool}


def _texts(content: Any) -> Iterator[str]:
    """The texts of a content that may be nothing but text; empty ones are refused there."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for part in content:
        text = part["text" if part["type"] == "text" else "refusal"]
        if text:
            yield text


def _part(part: Json) -> Iterator[Block]:
    if part["type"] == "text":
        if part["text"]:
            yield {"type": "text", "text": part["text"]}
    elif part["type"] == "image_url":
        yield {"type": "image", "source": _source(part["image_url"]["url"])}
    else:
        raise CannotCarry(f"messages.{part['type']}")


def _source(url: str) -> Json:
    if found := _DATA_URL.fullmatch(url):
        return {"type": "base64", "media_type": found[1], "data": found[2]}
    if not url.startswith(("https://", "http://")):
        raise CannotCarry("messages.image_url")
    return {"type": "url", "url": url}
