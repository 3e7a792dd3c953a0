"""The simulated provider as a client sees it, over real HTTP."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest

from simulated_provider.answers import answer_to, pieces_of


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 10
    while time.monotonic() < limit and process.poll() is None:
        try:
            if ask(port, "GET", "/health")[0] == 200:
                return
        except (OSError, HTTPException):
            time.sleep(0.02)
    pytest.fail("the simulated provider did not come up")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    chosen = free_port()
    process = subprocess.Popen([sys.executable, "-m", "simulated_provider", "--port", str(chosen)])
    try:
        wait_until_up(chosen, process)
        yield chosen
    finally:
        process.terminate()
        process.wait(timeout=5)


def chat(port: int, **members: Any) -> tuple[int, bytes]:
    request = {"model": "gpt-4", "messages": [{"role": "user", "content": "What is a circuit breaker?"}], **members}
    return ask(port, "POST", "/v1/chat/completions", json.dumps(request).encode())


def test_answers_in_openai_shape_and_says_it_is_simulated(port: int) -> None:
    status, body = chat(port)
    answer = json.loads(body)
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-4"
    assert answer["simulated"] is True
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].startswith("[simulated]")
    assert "What is a circuit breaker?" in choice["message"]["content"]
    assert answer["usage"]["total_tokens"] > answer["usage"]["prompt_tokens"] > 0


def test_a_streamed_answer_is_the_same_text_in_pieces(port: int) -> None:
    plain = json.loads(chat(port)[1])["choices"][0]["message"]["content"]
    status, body = chat(port, stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert status == 200
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
        (b'{"model": "gpt-nine", "messages": [{"role": "user", "content": "x"}]}', 404, "model_not_found"),
        (b"[" * 100_000, 400, None),
        (b'"' + b"x" * 5_000_000 + b'"', 413, None),
    ],
)
def test_refuses_what_the_format_does_not_know(port: int, body: bytes, status: int, code: str | None) -> None:
    got, answer = ask(port, "POST", "/v1/chat/completions", body)
    assert got == status
    assert json.loads(answer)["error"]["code"] == code


def test_lists_models_and_knows_no_other_path(port: int) -> None:
    listed = json.loads(ask(port, "GET", "/v1/models")[1])
    assert [model["id"] for model in listed["data"]] == ["gpt-4", "gpt-3.5-turbo"]
    assert ask(port, "GET", "/admin")[0] == 404
    assert ask(port, "GET", "/v1/chat/completions")[0] == 405


def test_long_and_structured_questions() -> None:
    long = answer_to([{"role": "user", "content": [{"type": "text", "text": "a" * 500}]}])
    assert "…" in long
    assert len(long) < 300
    assert answer_to([{"role": "system", "content": "x"}]).startswith("[simulated]")
    assert "".join(pieces_of("  a b\n c ")) == "  a b\n c "
