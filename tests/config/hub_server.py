"""A small hub on this machine: folders as repositories, with what `huggingface_hub` asks of the real one."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "a" * 40


@contextmanager
def hub(repositories: dict[str, Path], cache: Path, *, gated: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Serve `ORG/NAME` -> folder to the library in this process; gives the paths that were asked for."""
    constants = pytest.importorskip("huggingface_hub.constants")
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0].strip("/")
            asked.append(path)
            words = path.split("/")
            is_api = words[:2] == ["api", "models"]
            name = "/".join(words[2:4] if is_api else words[:2])
            if name in gated:
                return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            if name not in repositories:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            folder = repositories[name]
            files = sorted(file.name for file in folder.iterdir() if file.is_file())
            if is_api and words[4] == "revision":
                if words[5] not in ("main", "v1", COMMIT):
                    return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                siblings = [{"rfilename": file} for file in files]
                return self._json({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "gated": False, "tags": []})
            if is_api and words[4] == "tree":
                return self._json([{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0" * 40} for f in files])
            if not is_api and words[2:3] == ["resolve"] and words[4] in files:
                content = (folder / words[4]).read_bytes()
                tag = hashlib.sha256(content).hexdigest()
                return self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, with_body=with_body)
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body and self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        try:
            yield asked
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
