"""A small server that speaks as much of the Hugging Face Hub's interface as huggingface_hub needs, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""Tokens: the first may write to the repositories of ``owner``, both may read private ones."""


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Add files to those of a branch."""
        content = self.commits.get(self.refs.get(branch, ""), {}) | files
        sha = hashlib.sha1(repr((len(self.commits), sorted(content.items()))).encode()).hexdigest()
        self.commits[sha], self.refs[branch] = content, sha
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch or of its own hash."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: bool = False

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> str:
        """Make a repository with one commit."""
        self.repositories[name] = Repository(**options)
        return self.repositories[name].commit("main", files)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The files at the end of a branch."""
        repository = self.repositories[name]
        return repository.commits[repository.refs[branch]]


class _Failure(Exception):  # noqa: N818 - it is an answer
    def __init__(self, status: int, code: str = "", content: bytes = b"{}") -> None:
        self.status, self.code, self.content = status, code, content


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Transfer-Encoding") == "chunked":
                self.body = b""
                while size := int(self.rfile.readline(), 16):
                    self.body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                self.body = self.rfile.read(length)
            hub.requests.append(f"{self.command} {self.path}")
            try:
                if hub.broken:
                    raise _Failure(503)
                self.route()
            except _Failure as failure:
                headers = {"X-Error-Code": failure.code} if failure.code else {}
                self.send(failure.status, failure.content, headers)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks for

        def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def send_json(self, document: object) -> None:
            self.send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        @property
        def token(self) -> str:
            return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

        def repository(self, name: str) -> Repository:
            found = hub.repositories.get(name)
            if self.token not in ("", WRITER, READER):
                raise _Failure(401)
            if found is None or (found.private and not self.token):
                raise _Failure(401 if not self.token else 404, "RepoNotFound")
            if found.gated:
                raise _Failure(403, "GatedRepo")
            return found

        def must_write(self, name: str) -> None:
            if not self.token:
                raise _Failure(401)
            if self.token != WRITER or not name.startswith("owner/"):
                raise _Failure(403)

        def route(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            match self.command, parts:
                case "GET", ["api", "models", owner, name, *rest]:
                    self.model(f"{owner}/{name}", rest)
                case "GET" | "HEAD", [owner, name, "resolve", revision, path]:
                    self.file(f"{owner}/{name}", revision, path)
                case "POST", ["api", "validate-yaml"]:
                    self.send_json({"errors": [], "warnings": []})
                case "POST", ["api", "repos", "create"]:
                    self.create(json.loads(self.body))
                case "POST", ["api", "models", owner, name, "branch", branch]:
                    self.must_write(f"{owner}/{name}")
                    repository = self.repository(f"{owner}/{name}")
                    repository.refs.setdefault(branch, repository.refs["main"])
                    self.send_json({})
                case "POST", ["api", "models", owner, name, "preupload", _]:
                    self.must_write(f"{owner}/{name}")
                    names = [file["path"] for file in json.loads(self.body)["files"]]
                    modes = {True: "lfs", False: "regular"}
                    files = [
                        {"path": n, "uploadMode": modes[n.endswith("tensors")], "shouldIgnore": False} for n in names
                    ]
                    self.send_json({"files": files})
                case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                    self.must_write(f"{owner}/{name.removesuffix('.git')}")
                    objects = [
                        {**o, "actions": {"upload": {"href": f"{hub.url}/stored/{o['oid']}"}}}
                        for o in json.loads(self.body)["objects"]
                    ]
                    self.send_json({"transfer": "basic", "objects": objects})
                case "PUT", ["stored", oid]:
                    assert hashlib.sha256(self.body).hexdigest() == oid
                    hub.stored[oid] = self.body
                    self.send_json({})
                case "POST", ["api", "models", owner, name, "commit", branch]:
                    self.commit(f"{owner}/{name}", branch)
                case _:
                    raise _Failure(404)

        def model(self, name: str, rest: list[str]) -> None:
            repository = self.repository(name)
            sha = repository.find(rest[1] if len(rest) > 1 else "main")
            if sha is None:
                raise _Failure(404, "RevisionNotFound")
            files = repository.commits[sha]
            if rest[:1] == ["tree"]:
                listed = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ]
                self.send_json(listed)
            else:
                self.send_json({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

        def file(self, name: str, revision: str, path: str) -> None:
            repository = self.repository(name)
            sha = repository.find(revision)
            if sha is None:
                raise _Failure(404, "RevisionNotFound")
            content = repository.commits[sha].get(path)
            if content is None:
                raise _Failure(404, "EntryNotFound")
            self.send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha})

        def create(self, wanted: dict[str, object]) -> None:
            name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
            self.must_write(name)
            found = {"url": f"{hub.url}/{name}", "id": name}
            if name in hub.repositories:
                raise _Failure(409, content=json.dumps(found).encode())
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))  # older clients
            hub.add(name, {".gitattributes": b""}, private=private)
            self.send_json(found)

        def commit(self, name: str, branch: str) -> None:
            self.must_write(name)
            files = {}
            for line in self.body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.stored[value["oid"]]
            sha = self.repository(name).commit(branch, files)
            self.send_json({"success": True, "commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha})

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
