"""A small Hugging Face hub: what `huggingface_hub` asks of a model, from a directory. It counts, and can misbehave."""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"
WEIGHTS = "model.safetensors"
LARGE = 1000
"""From so many bytes a file is one of Git LFS: its digest is a SHA-256."""


class FakeHub:
    """Serves the files of `folder` as the model `owner/tiny`; `sent` counts the answers with a file's content by name.

    The next answer with a file ends after `cut_at` bytes, if that is given; `spoiled` are files whose next answer has a wrong byte.
    """

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.sent: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.asked = 0
        self.cut_at: int | None = None
        self.spoiled: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _sibling(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return {"rfilename": name, "size": len(data), "blobId": blob} | ({"lfs": lfs} if len(data) >= LARGE else {})

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request for the model's description or for a file."""
        if request.path.startswith("/api/models/owner/tiny"):
            self.asked += 1
            body = json.dumps(
                {"id": "owner/tiny", "sha": COMMIT, "siblings": [self._sibling(name) for name in self.files]}
            ).encode()
            self._send(request, 200, body, {"Content-Type": "application/json"})
        elif (found := re.fullmatch(rf"/owner/tiny/resolve/{COMMIT}/(.+)", request.path)) and found[1] in self.files:
            self._file(request, found[1])
        else:
            self._send(request, 404, b"", {})

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data, begin = self.files[name], 0
        if name in self.spoiled and request.command == "GET":
            self.spoiled.discard(name)
            data = b"?" + data[1:]
        if wanted := request.headers.get("Range"):
            self.ranges.append(wanted)
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.sent[name] += request.command == "GET"
        self._send(request, 206 if begin else 200, data[begin:], headers)

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cut_at is not None and len(body) > self.cut_at:
            body, self.cut_at = body[: self.cut_at], None
            request.close_connection = True
        request.wfile.write(body)
