"""The broker's disk: conditions on writes, order, retention, and what is on it after a restart."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from devstack.objectstore import ObjectStore, PreconditionError, Server

SECRET = "secret"
ALLOWED = {"Authorization": f"AWS4-HMAC-SHA256 Credential={SECRET}/20260101/us-east-1/s3/aws4_request"}


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [str(key.text) for key in ElementTree.fromstring(store.listing(prefix)).iter("Key")]


def test_a_write_happens_only_over_the_version_it_expects(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    first = store.put("a", b"1", fresh=True)
    with pytest.raises(PreconditionError):
        store.put("a", b"2", fresh=True)
    second = store.put("a", b"2", first.etag)
    with pytest.raises(PreconditionError):
        store.put("a", b"3", first.etag)
    with pytest.raises(PreconditionError):
        store.put("b", b"3", second.etag)
    assert store.get("a") == (second, b"2")


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    written = [store.put(key, key.encode()) for key in ("b/2", "b/1", "..", "a b&<é>")]
    again = ObjectStore(tmp_path / "store")
    assert [again.get(one.key) for one in written] == [(one, one.key.encode()) for one in written]
    assert keys(again) == sorted(one.key for one in written)
    assert keys(again, "b/") == ["b/1", "b/2"]
    assert again.put("later", b"").modified > written[-1].modified
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_of_the_batches_of_records_the_newest_are_kept(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path, kept=2)
    for number in range(4):
        store.put(f"t/records/{number}.batch", b"x")
        store.put(f"t/other/{number}", b"x")
    assert keys(store, "t/records/") == ["t/records/2.batch", "t/records/3.batch"]
    assert len(keys(store, "t/other/")) == 4
    assert keys(ObjectStore(tmp_path, kept=1), "t/records/") == ["t/records/3.batch"]


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    server = Server(ObjectStore(tmp_path), SECRET)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    try:
        yield client
    finally:
        client.close()
        server.shutdown()
        server.server_close()
        thread.join(5)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, str | None, bytes]:
    """Status, etag and body."""
    sent = ALLOWED | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    return answer.status, answer.headers["ETag"], answer.read()


def test_as_the_broker_speaks_to_it(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "GET", "/bucket/a/b")[0] == 404
    status, etag, _ = ask(connection, "PUT", "/bucket/a/b", b"one", If_None_Match="*")
    assert (status, etag is not None) == (200, True)
    assert ask(connection, "PUT", "/bucket/a/b", b"two", If_None_Match="*")[0] == 412
    assert ask(connection, "PUT", "/bucket/a/b", b"two", If_Match='"other"')[0] == 412
    assert ask(connection, "GET", "/bucket/a/b") == (200, etag, b"one")
    assert ask(connection, "GET", "/bucket/a/b", If_None_Match=str(etag)) == (304, etag, b"")
    assert b"<Key>a/b</Key>" in ask(connection, "GET", "/bucket?list-type=2&prefix=a%2F")[2]


def test_what_it_does_not_speak_and_who_may_not_ask(connection: http.client.HTTPConnection) -> None:
    assert ask(connection, "GET", "/bucket?uploads")[0] == 501
    assert ask(connection, "DELETE", "/bucket/a")[0] == 501
    assert ask(connection, "GET", "/bucket/a", Authorization="AWS4-HMAC-SHA256 Credential=other/x")[0] == 403
    assert ask(connection, "PUT", "/bucket/a", b"x", Authorization="")[0] == 403
