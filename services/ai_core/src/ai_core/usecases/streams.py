"""Streamed answers: one call of a provider, read by a task of its own, and handed to everybody who asked the same.

Reading in a task of its own keeps every wait bounded: a provider that stalls, or a connection whose clean-up hangs,
holds up nobody. The call ends when the last of its readers has gone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Self

import orjson

from ai_core.ports import ProviderFailed
from ai_core.query import Chunk, Completion, Query, Usage
from ai_core.usecases.links import Attempt, GuardedLink
from resilience import BulkheadFull, CallTimeout, Clock, Verdict, without_deadline
from resilience.breaker import Permit
from resilience.clock import Timer
from resilience.deadline import ABANDONED
from resilience.events import CallFinished, CallOutcome, Events
from resilience.policy import FAIR_SHARE

MAX_BYTES = 4_000_000
"""Bytes of one streamed answer; more than that is an answer without end."""
UNCLAIMED_SECONDS = 1.0
"""For how long an open stream waits for its first reader."""
UNKNOWN_RETRY = 1.0


class StreamBroken(Exception):
    """A streamed answer ended early. ``sent``: characters of text handed out before; ``retry_after`` in seconds."""

    def __init__(self, sent: int, retry_after: float = UNKNOWN_RETRY) -> None:
        super().__init__(f"{sent} characters were sent")
        self.sent = sent
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """Seconds: until the first token, between chunks, for the whole stream."""

    first_token: float
    idle: float
    total: float


class Recording:
    """A streamed answer as far as it has come: what its readers read."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Chunk]] = []
        self.error: Exception | None = None
        self.ended = False
        self.finish_reason = ""
        self.usage = Usage()
        self.cost: float | None = None
        self.model = ""
        self.simulated = False
        self.readers = 0
        self._size = 0
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def chunks(self) -> list[Chunk]:
        return list(chain.from_iterable(self.batches))

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    async def more(self) -> None:
        """Until something has come, or the end."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def join(self) -> None:
        """One more reader."""
        self.readers += 1

    def leave(self) -> None:
        """One reader has gone."""
        self.readers -= 1

    def _add(self, batch: Sequence[Chunk]) -> None:
        if not self.batches:
            self._introduce(batch)
        self.batches.append(batch)
        for chunk in batch:
            self._size += len(chunk.data)
            self.finish_reason = chunk.finish_reason or self.finish_reason
            self.usage = chunk.usage or self.usage
        self._wake()

    def _introduce(self, batch: Sequence[Chunk]) -> None:
        first: Any = orjson.loads(batch[0].data) if batch else {}
        self.model = str(first.get("model") or self.model)
        self.simulated = first.get("simulated") is True

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)


class Recorded(Recording):
    """A kept answer, as a stream."""

    def __init__(self, answer: Completion) -> None:
        super().__init__()
        self.cost = answer.cost
        self._add(chunks_of(answer))
        self.ended = True


class Live(Recording):
    """A call of a provider under way. It counts for the circuit, and holds its place, until its end.

    Made by ``open_stream``. ``on_end(self)`` is called once, at the end.
    """

    def __init__(
        self, guarded: GuardedLink, asked: Query, times: StreamTimes, events: Events, on_end: Callable[["Live"], None]
    ) -> None:
        super().__init__()
        self.guarded = guarded
        self.model = guarded.link.model
        self.committed = False
        self._asked = asked
        self._times = times
        self._events = events
        self._on_end = on_end
        self._clock: Clock = guarded.clock
        self._permit = self._admitted()
        self._began, self._started = self._clock.time(), self._clock.monotonic()
        self._last = self._started
        self._first_token: float | None = None
        self._timer = self._clock.call_later(times.total, self._overdue)
        self._task: asyncio.Task[None] | None = None
        self._unclaimed: Timer | None = None

    def _admitted(self) -> Permit:
        """Raises BulkheadFull, CircuitBreakerOpen."""
        policy = self.guarded.policy
        if ABANDONED.full or (policy.bulkhead is not None and not policy.bulkhead.try_acquire()):
            raise BulkheadFull(policy.name)
        try:
            return policy.breaker.acquire()
        except BaseException:
            if policy.bulkhead is not None:
                policy.bulkhead.release()
            raise

    async def opened(self, limit: float) -> None:
        """Until the first chunk that commits, for ``limit`` seconds. Raises CallTimeout, and as the provider does."""
        late = self._clock.call_later(limit, self._too_late, limit)
        try:
            with without_deadline():
                self._task = asyncio.get_running_loop().create_task(self._read(), name=self.guarded.name)
            while not (self.committed or self.ended):
                await self.more()
        except BaseException:
            self.give_up()
            raise
        finally:
            late.cancel()
        if not self.committed and self.error is not None:
            raise self.error
        if not self.ended:
            self._unclaimed = self._clock.call_later(UNCLAIMED_SECONDS, self.give_up)

    def join(self) -> None:
        super().join()
        if self._unclaimed is not None:
            self._unclaimed.cancel()

    def leave(self) -> None:
        super().leave()
        if not self.readers:
            self.give_up()

    def give_up(self) -> None:
        """Nobody wants the rest: the call is cancelled, which says nothing about the provider."""
        self._end(None, Verdict.NEUTRAL)

    # -- reading

    async def _read(self) -> None:
        try:
            async with self.guarded.provider.stream(self.guarded.link.model, self._asked) as batches:
                async for batch in batches:
                    self._take(batch)
            self._check_whole()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who read
            self._end(error)
        except asyncio.CancelledError:
            # Somebody else's doing when it was not given up: a driver may cancel itself.
            self._end(ProviderFailed("the stream was cancelled"))
            raise
        else:
            self._end(None, Verdict.SUCCESS)

    def _take(self, batch: Sequence[Chunk]) -> None:
        if self.ended or not batch:
            return
        self._last = self._clock.monotonic()
        if not self.committed and any(chunk.commits for chunk in batch):
            self._commit()
        self._add(batch)
        if self._size > MAX_BYTES:
            raise ProviderFailed("an answer without end")

    def _commit(self) -> None:
        self.committed = True
        self._first_token = self._last - self._started
        self._timer.cancel()
        self._timer = self._clock.call_later(self._times.idle, self._overdue)

    def _check_whole(self) -> None:
        if not self.committed:
            raise ProviderFailed("an answer without content")
        if not self.finish_reason:
            raise ProviderFailed("an answer that was cut off")

    # -- limits of time

    def _too_late(self, limit: float) -> None:
        if self.committed:
            return
        fair = limit >= self._times.first_token * FAIR_SHARE
        self._end(CallTimeout(self.guarded.name, limit), Verdict.FAILURE if fair else Verdict.NEUTRAL)

    def _overdue(self) -> None:
        """The provider has been silent for too long, or the whole takes too long."""
        now = self._clock.monotonic()
        idle = self._times.idle - (now - self._last) if self.committed else 0.0
        left = min(idle, self._times.total - (now - self._started))
        if left > 0:
            self._timer = self._clock.call_later(left, self._overdue)
            return
        self._end(CallTimeout(self.guarded.name, self._times.idle if idle <= 0 else self._times.total))

    # -- the end

    def _end(self, error: Exception | None, verdict: Verdict | None = None) -> None:
        if self.ended:
            return
        self.ended, self.error = True, error
        self._timer.cancel()
        self._settle(error, verdict)
        self._stop()
        self.cost = self.guarded.cost(self.usage, simulated=self.simulated)
        if error is not None:
            self.guarded.failed(error)
        self._report(error, given_up=error is None and verdict is Verdict.NEUTRAL)
        self._wake()
        self._on_end(self)

    def _settle(self, error: Exception | None, verdict: Verdict | None) -> None:
        policy = self.guarded.policy
        if error is not None:
            verdict = verdict or policy.breaker.verdict(error)
            self._permit.settle(error, verdict)
        elif verdict is Verdict.SUCCESS:
            self._permit.success()
        else:
            self._permit.neutral()
        if policy.bulkhead is not None:
            policy.bulkhead.release()
        seconds = self._clock.monotonic() - self._started
        outcome: CallOutcome = "timeout" if isinstance(error, CallTimeout) else _OUTCOMES[verdict or Verdict.NEUTRAL]
        if error is None and outcome == "success":
            policy.last_latency = self._first_token
        self._events.emit(CallFinished(policy.row.id, policy.row.dependency, outcome, seconds))

    def _stop(self) -> None:
        """Ends the task that reads, without waiting for its clean-up; not from within it, where it ends by itself."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not asyncio.current_task():
            ABANDONED.abandon(task)

    def _report(self, error: Exception | None, *, given_up: bool) -> None:
        self.guarded.meter(
            Attempt(
                self.guarded.link,
                True,
                self._began,
                self._clock.monotonic() - self._started,
                self._first_token,
                self.model,
                self.usage,
                self.finish_reason,
                self.cost,
                "cancelled" if given_up else "" if error is None else type(error).__name__,
            )
        )


_OUTCOMES: dict[Verdict, CallOutcome] = {
    Verdict.SUCCESS: "success",
    Verdict.FAILURE: "failure",
    Verdict.NEUTRAL: "neutral",
}


class Stream:
    """One reader of a streamed answer; leave it (``async with``) in any case. Who answers is known at once.

    ``finish_reason``, ``usage``, ``cost`` and ``text`` are known at the end. ``as_of``: unix seconds of a kept answer.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        provider: str,
        model: str,
        fallback_from: str = "",
        as_of: float | None = None,
        simulated: bool = False,
        retry_after: Callable[[], float] = lambda: UNKNOWN_RETRY,
    ) -> None:
        self.provider = provider
        self.model = model
        self.fallback_from = fallback_from
        self.as_of = as_of
        self.simulated = simulated
        self.sent = 0
        self._recording = recording
        self._retry_after = retry_after
        self._read = 0
        self._open = True
        recording.join()

    @property
    def cached(self) -> bool:
        return self.as_of is not None

    @property
    def finish_reason(self) -> str:
        return self._recording.finish_reason

    @property
    def usage(self) -> Usage:
        return self._recording.usage

    @property
    def cost(self) -> float | None:
        return self._recording.cost

    @property
    def text(self) -> str:
        return self._recording.text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Want nothing more; cancels the provider's call when nobody else reads it."""
        if self._open:
            self._open = False
            self._recording.leave()

    def __aiter__(self) -> AsyncIterator[Sequence[Chunk]]:
        return self

    async def __anext__(self) -> Sequence[Chunk]:
        """Everything that has come since. Raises StreamBroken."""
        recording = self._recording
        while self._read == len(recording.batches):
            if recording.error is not None or (recording.ended and not recording.finish_reason):
                raise StreamBroken(self.sent, self._retry_after()) from recording.error
            if recording.ended:
                raise StopAsyncIteration
            await recording.more()
        batches = recording.batches[self._read :]
        self._read += len(batches)
        found = batches[0] if len(batches) == 1 else list(chain.from_iterable(batches))
        self.sent += sum(len(chunk.text) for chunk in found)
        return found


async def open_stream(
    guarded: GuardedLink,
    asked: Query,
    times: StreamTimes,
    limit: float,
    events: Events,
    on_end: Callable[[Live], None],
) -> Live:
    """A stream that has begun to say something, within ``limit`` seconds.

    Raises what the provider and the policy raise; and ProviderBusy, without a call, while the link rests.
    """
    guarded.check()
    live = Live(guarded, asked, times, events, on_end)
    await live.opened(min(limit, times.first_token))
    return live


def chunks_of(answer: Completion) -> list[Chunk]:
    """A whole answer as the chunks of a stream."""
    choice = answer.body["choices"][0]
    message = {**answer.message, "role": "assistant"}
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    make = partial(_chunk, answer)
    reason = answer.finish_reason or "stop"
    usage = {"prompt_tokens": answer.usage.prompt, "completion_tokens": answer.usage.completion}
    usage["total_tokens"] = answer.usage.prompt + answer.usage.completion
    return [
        Chunk(make([{"index": 0, "delta": message, "finish_reason": None}]), answer.text, commits=True),
        Chunk(make([{"index": 0, "delta": {}, "finish_reason": choice.get("finish_reason")}]), finish_reason=reason),
        Chunk(make([], usage=usage), usage=answer.usage),
    ]


def _chunk(answer: Completion, choices: list[Any], **more: Any) -> bytes:
    kept = {name: answer.body[name] for name in ("id", "created", "system_fingerprint") if name in answer.body}
    simulated = {"simulated": True} if answer.simulated else {}
    body = {**kept, "object": "chat.completion.chunk", "model": answer.model, **simulated, "choices": choices, **more}
    return orjson.dumps(body)


def whole(live: Live) -> Completion | None:
    """The answer of a stream that has come to its end; None when it has several choices, or holds no useful one."""
    try:
        return _put_together(live)
    except (TypeError, AttributeError, ValueError):
        return None  # it was passed on as it came; what cannot be understood is not kept


def _put_together(live: Live) -> Completion | None:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[int, dict[str, Any]] = {}
    texts: list[str] = []
    chunks = live.chunks
    for chunk in chunks:
        if chunk.text and not any(mark in chunk.data for mark in _MORE_THAN_TEXT):
            texts.append(chunk.text)  # nearly all of them: reading each once more would cost a fifth of a stream
            continue
        for choice in orjson.loads(chunk.data).get("choices") or ():
            if choice.get("index"):
                return None
            texts.append(_merge(message, calls, choice.get("delta") or {}))
    message["content"] = "".join(texts) or None
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    if not (message["content"] or message.get("refusal") or calls):
        return None
    body = _body(live, orjson.loads(chunks[0].data), message)
    return Completion(body, live.guarded.link.provider, live.model, live.usage, live.simulated)


_MORE_THAN_TEXT = (b"refusal", b"tool_calls", b"function_call", b'"index":1', b'"index": 1')


def _merge(message: dict[str, Any], calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> str:
    """Adds one delta; its text. Source: OpenAI API reference, "The chat completion chunk object"."""
    if isinstance(delta.get("refusal"), str):
        message["refusal"] = message.get("refusal", "") + delta["refusal"]
    for part in delta.get("tool_calls") or ():
        call = calls.setdefault(part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}})
        call.update({key: part[key] for key in ("id", "type") if part.get(key)})
        for key, text in (part.get("function") or {}).items():
            call["function"][key] = call["function"].get(key, "") + (text or "")
    content = delta.get("content")
    return content if isinstance(content, str) else ""


def _body(live: Live, head: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    usage = live.usage
    counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
    return {
        "id": head.get("id", ""),
        "object": "chat.completion",
        "created": head.get("created", 0),
        "model": live.model,
        **({"simulated": True} if live.simulated else {}),
        "choices": [{"index": 0, "message": message, "finish_reason": live.finish_reason, "logprobs": None}],
        "usage": {**counts, "total_tokens": usage.prompt + usage.completion},
    }
