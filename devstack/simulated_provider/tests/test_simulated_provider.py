"""The simulated provider as clients see it, over real HTTP: what it answers and what it refuses."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
import wave
from typing import Any

import pytest

from simulated_provider.answers import answer_to, pieces_of, said
from simulated_provider.testing import Answer, Simulator, running

SPEECH = "/elevenlabs/v1/text-to-speech/JBFqnCBsd6RMkjVDRZzb"
ASKED = [{"role": "user", "content": "What is a circuit breaker?"}]


def chat(simulator: Simulator, **members: Any) -> Answer:
    return simulator.ask("POST", "/v1/chat/completions", {"model": "gpt-4", "messages": ASKED, **members})


def test_answers_in_openai_shape_and_says_it_is_simulated(simulator: Simulator) -> None:
    answer = chat(simulator)
    assert answer.status == 200
    assert answer.headers["x-simulated"] == "true"
    body = answer.json
    assert body["object"] == "chat.completion"
    assert body["model"] == "gpt-4"
    assert body["simulated"] is True
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].startswith("[simulated]")
    assert "What is a circuit breaker?" in choice["message"]["content"]
    assert body["usage"]["total_tokens"] > body["usage"]["prompt_tokens"] > 0


def test_a_streamed_answer_is_the_same_text_in_pieces(simulator: Simulator) -> None:
    plain = chat(simulator).json["choices"][0]["message"]["content"]
    answer = chat(simulator, stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in answer.body.decode().split("\n\n") if line]
    assert answer.headers["content-type"] == "text/event-stream"
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(chunk["simulated"] is True for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert text == plain
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, None),
        (b"[1]", 400, None),
        (b'{"messages": [{"role": "user"}]}', 400, None),
        (b'{"model": "gpt-4", "messages": []}', 400, None),
        (b'{"model": "gpt-4", "messages": [1]}', 400, None),
        (b'{"model": "gpt-4", "messages": [{"role": "user"}], "stream_options": 3}', 400, None),
        (b'{"model": "gpt-4", "messages": [{"role": "user"}], "tools": "x"}', 400, None),
        (b'{"model": "gpt-nine", "messages": [{"role": "user", "content": "x"}]}', 404, "model_not_found"),
        (b"[" * 100_000, 400, None),
        (b'"' + b"x" * 3_000_000 + b'"', 400, None),
    ],
)
def test_refuses_what_openai_does_not_know(simulator: Simulator, body: bytes, status: int, code: str | None) -> None:
    answer = simulator.ask("POST", "/v1/chat/completions", body)
    assert answer.status == status
    assert answer.json["error"]["code"] == code
    assert simulator.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"model": "claude-sonnet-5-5", "messages": ASKED}, 400, "invalid_request_error"),
        ({"max_tokens": 5, "messages": ASKED}, 400, "invalid_request_error"),
        ({"max_tokens": 5, "model": "claude-1", "messages": ASKED}, 404, "not_found_error"),
        ({"max_tokens": 5, "model": "claude-sonnet-5-5", "messages": []}, 400, "invalid_request_error"),
        (
            {"max_tokens": 5, "model": "claude-sonnet-5-5", "messages": ASKED, "temperature": 0.5},
            400,
            "invalid_request_error",
        ),
        (
            {"max_tokens": 5, "model": "claude-sonnet-5-5", "messages": [{"role": "system", "content": "x"}]},
            400,
            "invalid_request_error",
        ),
    ],
)
def test_refuses_what_anthropic_does_not_know(simulator: Simulator, body: Any, status: int, kind: str) -> None:
    answer = simulator.ask("POST", "/anthropic/v1/messages", body)
    assert answer.status == status
    assert answer.json["type"] == "error"
    assert answer.json["error"]["type"] == kind


def test_speaks_as_elevenlabs(simulator: Simulator) -> None:
    answer = simulator.ask("POST", f"{SPEECH}?output_format=mp3_44100_128", {"text": "Hello there"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-simulated"] == "true"
    with wave.open(io.BytesIO(answer.body)) as sound:
        assert 0.2 < sound.getnframes() / sound.getframerate() < 5
    assert simulator.ask("POST", SPEECH, {"text": "Hello there"}).body == answer.body
    raw = simulator.ask("POST", f"{SPEECH}?output_format=pcm_16000", {"text": "Hello there"})
    assert answer.body.endswith(raw.body)
    assert (
        simulator.ask("GET", "/elevenlabs/v1/voices").json["voices"][0]["voice_id"] in SPEECH + "21m00Tcm4TlvDq8ikWAM"
    )


def test_refuses_what_elevenlabs_does_not_know(simulator: Simulator) -> None:
    assert simulator.ask("POST", "/elevenlabs/v1/text-to-speech/nobody", {"text": "x"}).status == 404
    assert simulator.ask("POST", SPEECH, {}).status == 422
    assert simulator.ask("POST", SPEECH, {"text": "x", "model_id": "eleven_nothing"}).status == 400
    assert simulator.ask("GET", SPEECH).status == 405


def test_knows_no_other_path_or_method(simulator: Simulator) -> None:
    for path in ("/", "/v2/models", "/v1/nothing", "/anthropic/v1/nothing", "/elevenlabs/v1/nothing", "/admin/nothing"):
        assert simulator.ask("GET", path).status == 404, path
    assert simulator.ask("GET", "/v1/chat/completions").status == 405
    assert simulator.ask("GET", "/anthropic/v1/messages").status == 405


def test_what_is_too_large_is_refused(simulator: Simulator) -> None:
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=5) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n")
        refused = b""
        try:
            while not refused:
                connection.sendall(b"x" * 100_000)
                connection.setblocking(False)
                try:
                    refused = connection.recv(100)
                except BlockingIOError:
                    connection.settimeout(5)
        except ConnectionError:
            pass
    assert simulator.ask("GET", "/health").status == 200
    assert refused.startswith(b"HTTP/1.1 413") or not refused


@pytest.mark.parametrize("raw", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n"])
def test_what_is_no_http_is_refused(simulator: Simulator, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=5) as connection:
        connection.sendall(raw)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert simulator.ask("GET", "/health").status == 200


def test_pipelined_requests_are_answered_in_order(simulator: Simulator) -> None:
    simulator.order("openai:gpt-4", "slow", seconds=0.05, times=1)
    body = json.dumps({"model": "gpt-4", "messages": ASKED}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=5) as connection:
        connection.sendall(head + body + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = b""
        while part := connection.recv(65_536):
            received += part
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.index(b"chat.completion") < received.index(b"healthy")


def test_options_and_a_clean_stop_with_an_answer_under_way() -> None:
    with running("--answer-tokens", "30", "--delay", "0.001") as simulator:
        answer = chat(simulator)
        assert len(pieces_of(answer.json["choices"][0]["message"]["content"])) == 30
        simulator.order("openai", "hang")
        waiting = socket.create_connection(("127.0.0.1", simulator.port), timeout=5)
        waiting.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        while not simulator.calls("openai").get("models"):
            time.sleep(0.01)
    with waiting:
        assert waiting.recv(10) == b""


def test_a_port_in_use_is_said(simulator: Simulator) -> None:
    command = [sys.executable, "-m", "simulated_provider", "--port", str(simulator.port)]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    assert str(simulator.port).encode() in done.stderr


def test_long_and_structured_questions() -> None:
    long = answer_to([{"role": "user", "content": [{"type": "text", "text": "a" * 500}]}])
    assert "…" in long
    assert len(long) < 300
    assert answer_to([{"role": "system", "content": "x"}]).startswith("[simulated]")
    assert "".join(pieces_of("  a b\n c ")) == "  a b\n c "
    assert [len(said(ASKED, least)[0]) for least in (40, 500)] == [40, 500]
    assert said(ASKED, 40, 5)[1]


def test_a_client_that_leaves_or_does_not_read_harms_nobody(simulator: Simulator) -> None:
    simulator.ask("PUT", "/admin/settings", {"token_delay": 0.001, "answer_tokens": 5_000})
    body = json.dumps({"model": "gpt-4", "messages": ASKED, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    reading = socket.create_connection(("127.0.0.1", simulator.port), timeout=5)
    leaving = [socket.create_connection(("127.0.0.1", simulator.port), timeout=5) for _ in range(20)]
    for one in (reading, *leaving):
        one.sendall(head + body)
        assert one.recv(15) == b"HTTP/1.1 200 OK"
    for one in leaving:
        one.close()
    simulator.ask("PUT", "/admin/settings", {"token_delay": 0, "answer_tokens": 0})
    assert chat(simulator).status == 200
    with reading:
        assert b"[simulated]" in reading.recv(65_536)
    assert simulator.ask("GET", "/health").status == 200
