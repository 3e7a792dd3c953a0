"""What the admin API orders is what clients meet, on the target alone, and it is counted."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import pytest

from simulated_provider.faults import KINDS
from simulated_provider.testing import Answer, Simulator

ASKED = [{"role": "user", "content": "Hello"}]
CHAT, MESSAGES = "/v1/chat/completions", "/anthropic/v1/messages"
SPEECH = "/elevenlabs/v1/text-to-speech/JBFqnCBsd6RMkjVDRZzb"
CLAUDE = "claude-sonnet-5-5"
BROKEN = (OSError, http.client.HTTPException)


def chat(simulator: Simulator, limit: float = 5.0, **members: Any) -> Answer:
    return simulator.ask("POST", CHAT, {"model": "gpt-4", "messages": ASKED, **members}, limit)


def message(simulator: Simulator, **members: Any) -> Answer:
    return simulator.ask("POST", MESSAGES, {"model": CLAUDE, "max_tokens": 99, "messages": ASKED, **members})


def events(answer: Answer) -> list[str]:
    return [event for event in answer.body.decode().split("\n\n") if event]


def contents(answer: Answer) -> list[str]:
    return [event for event in events(answer) if '"delta":{"content":"' in event and '"role"' not in event]


def test_a_fault_concerns_its_target_alone(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "error")
    assert chat(simulator).status == 500
    assert chat(simulator, model="gpt-3.5-turbo").status == 200
    assert message(simulator).status == 200
    assert simulator.ask("GET", "/v1/models").status == 200
    simulator.order("openai", "error", status=503)
    assert chat(simulator).status == 500, "the more specific fault wins"
    assert chat(simulator, model="gpt-3.5-turbo").status == 503
    assert simulator.ask("GET", "/v1/models").status == 503
    assert message(simulator).status == 200
    simulator.ask("DELETE", "/admin/faults/openai")
    assert chat(simulator, model="gpt-3.5-turbo").status == 200


def test_kinds_are_targets_too(simulator: Simulator) -> None:
    simulator.order("openai:embeddings", "error")
    simulator.order("openai:speech", "error")
    asked = {"model": "text-embedding-3-small", "input": "x"}
    assert simulator.ask("POST", "/v1/embeddings", asked).status == 500
    assert simulator.ask("POST", "/v1/audio/speech", {"model": "tts-1", "voice": "a", "input": "x"}).status == 500
    assert chat(simulator).status == 200
    assert simulator.ask("POST", SPEECH, {"text": "x"}).status == 200


def test_times_and_counting(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "error", times=2)
    assert [chat(simulator).status for _ in range(3)] == [500, 500, 200]
    chat(simulator, stream=True)
    assert simulator.calls("openai:gpt-4") == {"calls": 4, "chat": 3, "stream": 1, "faulted": 2}
    assert simulator.ask("GET", "/admin/faults").json == {}
    simulator.order("openai", "error", times=1)
    assert simulator.ask("GET", "/v1/models").status == 500
    assert chat(simulator).status == 500, "looking at the models does not use it up"
    assert simulator.calls("openai") == {"calls": 1, "models": 1, "faulted": 1}
    simulator.ask("DELETE", "/admin/calls")
    assert simulator.ask("GET", "/admin/calls").json == {}


def test_rate_limits(simulator: Simulator) -> None:
    for ask, target, left in (
        (chat, "openai", "x-ratelimit-remaining-requests"),
        (message, "anthropic", "anthropic-ratelimit-requests-remaining"),
    ):
        simulator.order(target, "rate_limit", retry_after=2.5)
        answer = ask(simulator)
        assert answer.status == 429
        assert answer.headers["retry-after"] == "3"
        assert answer.headers[left] == "0"
        simulator.order(target, "rate_limit_no_hint")
        answer = ask(simulator)
        assert answer.status == 429
        assert not {"retry-after", left} & answer.headers.keys()
        simulator.order(target, "exhausted", retry_after=20)
        answer = ask(simulator)
        assert answer.status == 200
        assert answer.headers[left] == "0"


@pytest.mark.parametrize("fault", ["slow", "slow_first_token"])
def test_slow(simulator: Simulator, fault: str) -> None:
    simulator.order("openai:gpt-4", fault, seconds=0.2)
    for members in ({}, {"stream": True}):
        begun = time.monotonic()
        assert chat(simulator, **members).status == 200
        assert 0.2 <= time.monotonic() - begun < 2


def test_slow_to_the_first_token_begins_at_once(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "slow_first_token", seconds=0.4)
    connection = http.client.HTTPConnection("127.0.0.1", simulator.port, timeout=5)
    begun = time.monotonic()
    connection.request("POST", CHAT, json.dumps({"model": "gpt-4", "messages": ASKED, "stream": True}))
    response = connection.getresponse()
    assert b'"role":"assistant"' in response.readline()
    early = time.monotonic() - begun
    response.readline()
    assert b"[simulated]" in response.readline()
    assert time.monotonic() - begun >= 0.4 > early
    connection.close()


def test_hangs_and_refusals(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "hang", seconds=30)
    with pytest.raises(TimeoutError):
        chat(simulator, limit=0.2)
    simulator.order("openai:gpt-4", "hang", seconds=0.05)
    with pytest.raises(ConnectionResetError):
        chat(simulator)
    simulator.order("openai:gpt-4", "refuse")
    with pytest.raises(ConnectionResetError):
        chat(simulator)


def test_useless_answers_of_200(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "empty")
    assert chat(simulator).json["choices"] == []
    assert events(chat(simulator, stream=True))[-1] == "data: [DONE]"
    simulator.order("openai:gpt-4", "html")
    for members in ({}, {"stream": True}):
        answer = chat(simulator, **members)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/html")
    simulator.order("openai:gpt-4", "malformed")
    with pytest.raises(ValueError):
        _ = chat(simulator).json
    last = events(chat(simulator, stream=True))[-1]
    with pytest.raises(ValueError):
        json.loads(last.removeprefix("data: "))
    simulator.order("anthropic", "empty")
    assert message(simulator).json["content"] == []
    assert "content_block" not in message(simulator, stream=True).body.decode()
    simulator.order("elevenlabs", "empty")
    assert simulator.ask("POST", SPEECH, {"text": "x"}).body == b""


def test_a_stream_that_is_cut_in_the_middle(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "cut", after_tokens=4)
    with pytest.raises(http.client.IncompleteRead) as cut:
        chat(simulator, stream=True)
    assert len(contents(Answer(200, {}, cut.value.partial))) == 4
    with pytest.raises(http.client.IncompleteRead):
        chat(simulator)


def test_a_stream_that_stalls_in_the_middle(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "stall", after_tokens=2, seconds=30)
    for members in ({}, {"stream": True}):
        with pytest.raises(TimeoutError):
            chat(simulator, limit=0.2, **members)


def test_a_stream_that_tells_of_an_error(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "error_event", after_tokens=2)
    found = events(chat(simulator, stream=True))
    assert json.loads(found[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert chat(simulator).status == 500
    simulator.order("anthropic", "error_event", after_tokens=2)
    assert events(message(simulator, stream=True))[-1].startswith("event: error\n")


def test_a_stream_that_ends_without_a_finish_reason(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "unfinished", after_tokens=2)
    answer = chat(simulator, stream=True)
    assert len(contents(answer)) == 2
    assert "[DONE]" not in answer.body.decode()
    assert '"finish_reason":"' not in answer.body.decode()


def test_tokens_one_by_one(simulator: Simulator) -> None:
    simulator.ask("PUT", "/admin/settings", {"token_delay": 0.01, "answer_tokens": 20})
    begun = time.monotonic()
    assert len(contents(chat(simulator, stream=True))) == 20
    assert time.monotonic() - begun >= 0.2
    simulator.order("openai:gpt-4", "trickle", seconds=0.02)
    begun = time.monotonic()
    chat(simulator, stream=True)
    assert time.monotonic() - begun >= 0.4


@pytest.mark.parametrize("fault", sorted(KINDS))
@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_is_known_everywhere(simulator: Simulator, fault: str, stream: bool) -> None:
    """Whatever is ordered, the process goes on and other calls are well."""
    for target in ("openai", "anthropic", "elevenlabs"):
        simulator.order(target, fault, seconds=0.01)
    for method, path, body in (
        ("POST", CHAT, {"model": "gpt-4", "messages": ASKED, "stream": stream}),
        ("POST", MESSAGES, {"model": CLAUDE, "max_tokens": 99, "messages": ASKED, "stream": stream}),
        ("POST", SPEECH, {"text": "Hello"}),
        ("POST", "/v1/embeddings", {"model": "text-embedding-3-small", "input": "x"}),
        ("GET", "/elevenlabs/v1/voices", None),
        ("GET", "/anthropic/v1/models", None),
    ):
        try:
            simulator.ask(method, path, body)
        except BROKEN:
            assert fault in ("hang", "refuse", "cut", "stall")
    simulator.ask("DELETE", "/admin/faults")
    assert chat(simulator).status == message(simulator).status == 200


@pytest.mark.parametrize(
    ("target", "body", "status"),
    [
        ("openai:gpt-five", {"fault": "slow"}, 404),
        ("openai", {"fault": "meltdown"}, 422),
        ("openai", {}, 422),
        ("openai", [1], 422),
        ("openai", b"{", 422),
        ("openai", {"fault": "slow", "seconds": "long"}, 422),
        ("openai", {"fault": "slow", "seconds": 10_000}, 422),
        ("openai", {"fault": "slow", "seconds": True}, 422),
        ("openai", {"fault": "slow", "sceonds": 1}, 422),
        ("openai", {"fault": "error", "status": 200}, 422),
    ],
)
def test_wrong_orders_are_refused(simulator: Simulator, target: str, body: Any, status: int) -> None:
    assert simulator.ask("PUT", f"/admin/faults/{target}", body).status == status
    assert simulator.ask("GET", "/admin/faults").json == {}
    assert "openai:gpt-4" in simulator.ask("GET", "/admin/targets").json
