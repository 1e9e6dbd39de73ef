"""A hub on this machine: repositories with commits, served as huggingface_hub asks for them, and a record of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


@dataclass
class LocalHub:
    """``commits``: of the one repository, by hash. ``asked``: (commit, file) of every file that was sent."""

    repo: str
    main: str = ""
    commits: dict[str, Path] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def push(self, folder: Path) -> str:
        """A new commit with a folder's files, which becomes the main branch."""
        self.main = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[self.main] = folder
        return self.main

    def sent(self, suffix: str) -> set[str]:
        """Names of the files sent that end so."""
        return {name for _, name in self.asked if name.endswith(suffix)}

    def answer(self, path: str) -> tuple[dict[str, str], bytes] | None:
        """Headers and body of a request; None for what is not there."""
        api, resolve = f"/api/models/{self.repo}", f"/{self.repo}/resolve/"
        if path in (api, f"{api}/revision/main"):
            return {}, json.dumps({"id": self.repo, "sha": self.main}).encode()
        if path.startswith(f"{api}/tree/"):
            folder = self.commits[path.removeprefix(f"{api}/tree/").partition("?")[0]]
            files = [
                {"type": "file", "oid": p.name, "size": p.stat().st_size, "path": p.name} for p in folder.iterdir()
            ]
            return {}, json.dumps(files).encode()
        if path.startswith(resolve):
            commit, _, name = path.removeprefix(resolve).partition("/")
            file = self.commits[commit] / name
            tag = hashlib.sha1(f"{commit}/{name}".encode()).hexdigest()
            return ({"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, file.read_bytes()) if file.is_file() else None
        return None


@contextmanager
def serving(hub: LocalHub) -> Iterator[LocalHub]:
    """``hub`` at an address of this machine, for the length of the context."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            answer = hub.answer(self.path)
            self.send_response(404 if answer is None else 200)
            headers, body = answer or ({"X-Error-Code": "RepoNotFound"}, b"")
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                if "X-Repo-Commit" in headers:
                    hub.asked.append((headers["X-Repo-Commit"], self.path.rpartition("/")[2]))
                self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
