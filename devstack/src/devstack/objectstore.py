"""The embedded broker's disk: as much of the S3 API as Tansu uses, on a folder of files.

The broker of the wheel is built for object stores only; its other choice is memory, which a SIGKILL empties. What is
acknowledged here is on the disk. Spoken are conditional PUT, GET and ListObjectsV2 in path style
(https://docs.aws.amazon.com/AmazonS3/latest/API/); anything else is answered with 501.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

SUFFIX = ".object"  # of the files; also makes a harmless name of the key ".."
RECORDS = "/records/"  # the folders in which Tansu keeps batches of records, one object each
KEPT = 5_000  # newest objects in such a folder: the broker deletes none, and lists them at each fetch
OBJECT_BYTES = 64 * 2**20


class PreconditionError(Exception):
    """The object is not in the state that the writer expects."""


@dataclass(frozen=True)
class Stored:
    """One object's version. Times differ within a store (ns): the broker takes the latest batch to be the last."""

    key: str
    size: int
    modified: int

    @property
    def etag(self) -> str:
        return f'"{self.modified:x}"'

    @property
    def timestamp(self) -> str:
        whole, rest = divmod(self.modified, 10**9)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:09d}Z"


class ObjectStore:
    """Files in ``folder``, and what is known about them in memory. One store at a time may use the folder."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._kept = kept
        self._lock = threading.Lock()
        self._draft = folder / "draft"
        found = [_stored(file) for file in folder.glob(f"*{SUFFIX}")]
        self._objects: dict[str, Stored] = {}
        self._entries: dict[str, str] = {}
        self._batches: dict[str, deque[str]] = {}  # by folder, the oldest first
        for one in sorted(found, key=lambda one: one.modified):
            self._know(one)
        self._last = max((one.modified for one in found), default=0)

    def put(self, key: str, content: bytes, expected: str | None = None, *, fresh: bool = False) -> Stored:
        """Writes an object; ``expected``: only over the version of this etag; ``fresh``: only if there is none.

        Raises:
            PreconditionError: the condition does not hold.
            OSError: the disk refuses; the former version is still there.
        """
        with self._lock:
            present = self._objects.get(key)
            if (fresh and present) or (expected is not None and (present is None or present.etag != expected)):
                raise PreconditionError(key)
            self._last = max(self._last + 1, time.time_ns())
            stored = Stored(key, len(content), self._last)
            self._write(stored, content)
            self._know(stored)
            return stored

    def get(self, key: str) -> tuple[Stored, bytes]:
        """Raises:
        KeyError: there is no such object.
        """
        with self._lock:
            return self._objects[key], self._file(key).read_bytes()

    def listing(self, prefix: str) -> str:
        """The objects below ``prefix`` in the order of their keys, as the XML of ListObjectsV2."""
        with self._lock:
            entries = [self._entries[key] for key in sorted(key for key in self._objects if key.startswith(prefix))]
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"

    def _write(self, stored: Stored, content: bytes) -> None:
        """The whole new version or the whole old one, whenever the power fails."""
        with self._draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.utime(file.fileno(), ns=(stored.modified, stored.modified))
            os.fsync(file.fileno())
        self._draft.replace(self._file(stored.key))
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _know(self, stored: Stored) -> None:
        """Takes the object into the index, and drops the oldest batches of records when there are too many."""
        folder, found, _ = stored.key.rpartition(RECORDS)
        batches = self._batches.setdefault(folder, deque())
        if found and stored.key not in self._objects:
            batches.append(stored.key)
        self._objects[stored.key], self._entries[stored.key] = stored, _entry(stored)
        while len(batches) > self._kept:
            oldest = batches.popleft()
            self._file(oldest).unlink(missing_ok=True)
            del self._objects[oldest], self._entries[oldest]

    def _file(self, key: str) -> Path:
        return self._folder / (quote(key, safe="") + SUFFIX)


def _stored(file: Path) -> Stored:
    stat = file.stat()
    return Stored(unquote(file.name.removesuffix(SUFFIX)), stat.st_size, stat.st_mtime_ns)


def _entry(one: Stored) -> str:
    """Its element in a listing; made once, since each fetch of a consumer lists."""
    etag = escape(one.etag)
    return (
        f"<Contents><Key>{escape(one.key)}</Key><LastModified>{one.timestamp}</LastModified>"
        f"<ETag>{etag}</ETag><Size>{one.size}</Size></Contents>"
    )


class Handler(BaseHTTPRequestHandler):
    """One connection. The secret is the access key's id, which the client's signature contains in plain text: this is
    loopback, and it keeps other users of the machine out."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet per answer
    server: Server

    def do_GET(self) -> None:
        key, query = self._target()
        if not self._allowed():
            return self._answer(403)
        if not key:
            return self._list(query)
        try:
            stored, content = self.server.store.get(key)
        except KeyError:
            return self._answer(404)
        if self.headers.get("If-None-Match") == stored.etag:
            return self._answer(304, stored=stored)
        return self._answer(200, content, stored)

    def _list(self, query: dict[str, str]) -> None:
        if set(query) <= {"list-type", "prefix"}:
            self._answer(200, self.server.store.listing(query.get("prefix", "")).encode())
        else:
            self._answer(501)

    def do_PUT(self) -> None:
        key, query = self._target()
        length = self.headers.get("Content-Length", "")
        allowed = self._allowed()
        if not (allowed and key and not query and length.isdecimal() and int(length) <= OBJECT_BYTES):
            self.close_connection = True  # the body is not read
            return self._answer(501 if allowed else 403)
        content = self.rfile.read(int(length))
        fresh = self.headers.get("If-None-Match") == "*"
        try:
            stored = self.server.store.put(key, content, self.headers.get("If-Match"), fresh=fresh)
        except PreconditionError:
            return self._answer(412)
        except OSError as error:
            self.log_error("%s: %s", key, error)
            return self._answer(500)
        return self._answer(200, stored=stored)

    def _allowed(self) -> bool:
        _, _, rest = self.headers.get("Authorization", "").partition("Credential=")
        return hmac.compare_digest(rest.partition("/")[0].encode(), self.server.secret.encode())

    def _target(self) -> tuple[str, dict[str, str]]:
        """The key below the bucket, and the query."""
        parts = urlsplit(self.path)
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        return key, {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}

    def _answer(self, status: int, body: bytes = b"", stored: Stored | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if stored is not None:
            self.send_header("ETag", stored.etag)
            self.send_header("Last-Modified", self.date_time_string(int(stored.modified / 10**9)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Only what the broker must not ask."""
        if str(code) == "501":
            super().log_request(code, size)


class Server(ThreadingHTTPServer):
    """Serves ``store`` on a free port of 127.0.0.1 to whoever knows ``secret``."""

    daemon_threads = True

    def __init__(self, store: ObjectStore, secret: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = store
        self.secret = secret

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"
