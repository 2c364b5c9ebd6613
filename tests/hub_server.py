"""A tiny Hub on this computer: as much of the protocol as huggingface_hub needs to create, list, commit and fetch.

Uploads go the way of git LFS; the newer way (Xet), which a server may offer beside it, is not spoken here.
"""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writerswritersecret", "hf_readersreadersecret"
MISSING = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


@dataclass
class Repository:
    """Files by commit, oldest first."""

    private: bool = False
    gated: bool = False
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.history)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.history[self.head]

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(f"{len(self.history)}{sorted(files)}".encode()).hexdigest()
        self.history[name] = files
        return name

    def find(self, revision: str) -> str | None:
        known = {"main": self.head, **self.tags, **{commit: commit for commit in self.history}}
        return known.get(revision)


@dataclass
class HubServer:
    """What the Hub knows, and how it misbehaves.

    Attributes:
        log: method and path of every request.
        refuse: status, headers and text by the beginning of "METHOD path"; they go before anything else.
        claims: name and size of files that listings show beside those that are there.
        delays: seconds before the answer, by the beginning of "METHOD path".
        all_regular: whether it takes every file as a part of the commit, and none by way of LFS.
        url: where it listens.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    refuse: dict[str, tuple[int, dict[str, str], str]] = field(default_factory=dict)
    claims: dict[str, int | None] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    all_regular: bool = False
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repository:
        self.repositories[name] = Repository(**options)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def start(self) -> None:
        hub = self

        class Bound(Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Handler(BaseHTTPRequestHandler):
    server_hub: HubServer

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - so http.server calls them

    def _answer(self) -> None:
        hub, path = self.server_hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.log.append(f"{self.command} {path}")
        time.sleep(sum(wait for start, wait in hub.delays.items() if f"{self.command} {path}".startswith(start)))
        for start, (status, headers, text) in hub.refuse.items():
            if f"{self.command} {path}".startswith(start):
                return self._send(status, text.encode(), headers)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER) and not path.startswith("/lfs/"):
            return self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, token, *found.groups())
        return self._send(404, b"", {})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _visible(self, name: str, token: str) -> Repository | None:
        found = self.server_hub.repositories.get(name)
        return found if found and (token == WRITER or not found.private) else None

    # --- looking ------------------------------------------------------------------------------------------------------

    def info(self, body: bytes, token: str, name: str, revision: str | None) -> None:
        repository = self._visible(name, token)
        if repository is None:
            return self._send(404, b"", MISSING)
        commit = repository.find(revision or "main")
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        sizes = {**{file: len(data) for file, data in repository.history[commit].items()}, **self.server_hub.claims}
        return self._json(
            {
                "id": name,
                "sha": commit,
                "private": repository.private,
                "siblings": [{"rfilename": file, "size": size} for file, size in sizes.items()],
            }
        )

    def tree(self, body: bytes, token: str, name: str, revision: str) -> None:
        repository = self._visible(name, token)
        commit = repository.find(revision) if repository else None
        if repository is None or commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"} if repository else MISSING)
        found = {**{file: len(data) for file, data in repository.history[commit].items()}, **self.server_hub.claims}
        return self._json(
            [{"type": "file", "path": file, "size": size or 0, "oid": "0" * 40} for file, size in found.items()]
        )

    def resolve(self, body: bytes, token: str, name: str, revision: str, file: str) -> None:
        repository = self._visible(name, token)
        if repository is None:
            return self._send(404, b"", MISSING)
        if repository.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        commit = repository.find(revision)
        if commit is None or file not in repository.history[commit]:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound" if commit else "RevisionNotFound"})
        data = repository.history[commit][file]
        return self._send(200, data, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    # --- writing ------------------------------------------------------------------------------------------------------

    def create(self, body: bytes, token: str) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if token != WRITER:
            return self._json({"error": "You don't have the rights to create a model"}, 403 if token else 401)
        if name in self.server_hub.repositories:
            return self._json({"error": "It exists already", "url": f"{self.server_hub.url}/{name}"}, 409)
        private = wanted.get("visibility") == "private"
        self.server_hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return self._json({"url": f"{self.server_hub.url}/{name}"})

    def validate(self, body: bytes, token: str) -> None:
        head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        errors = []
        if head.get("license") == "not-a-license":
            errors.append({"message": '"license" must be one of [mit, ...]'})
        if "base_model" in head and not re.fullmatch(r"[\w.-]+/[\w.-]+", head["base_model"]):
            errors.append({"message": '"base_model" is not valid'})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, token: str, name: str) -> None:
        if token != WRITER:
            return self._send(403, b"", {"X-Error-Message": f"Forbidden: {token} may not write"})
        there = self.server_hub.repositories[name].files
        return self._json({"files": [self._mode(file["path"], there) for file in json.loads(body)["files"]]})

    def _mode(self, path: str, there: dict[str, bytes]) -> dict[str, Any]:
        large, data = not path.endswith(".md") and not self.server_hub.all_regular, there.get(path, b"")
        oid = hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0%b" % (len(data), data))
        mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return {**mode, "oid": oid.hexdigest()} if path in there else mode

    def batch(self, body: bytes, token: str, name: str) -> None:
        upload = [{**item, "actions": {"upload": {"href": f"{self.server_hub.url}/lfs/{item['oid']}"}}}
                  for item in json.loads(body)["objects"]]  # fmt: skip
        self._json({"transfer": "basic", "objects": upload})

    def store(self, body: bytes, token: str, oid: str) -> None:
        self.server_hub.blobs[oid] = body
        self._send(200, b"")

    def commit(self, body: bytes, token: str, name: str) -> None:
        repository = self.server_hub.repositories[name]
        files = dict(repository.files)
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", repository.head) != repository.head:
                return self._send(412, b"", {"X-Error-Message": "A commit has happened since."})
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        return self._json({"commitUrl": f"{self.server_hub.url}/{name}/commit/{commit}", "commitOid": commit})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    rf"GET /api/models/{REPO}(?:/revision/(.+))?": Handler.info,
    rf"GET /api/models/{REPO}/tree/([^/]+)": Handler.tree,
    rf"(?:GET|HEAD) /{REPO}/resolve/([^/]+)/(.+)": Handler.resolve,
    r"POST /api/repos/create": Handler.create,
    r"POST /api/validate-yaml": Handler.validate,
    rf"POST /api/models/{REPO}/preupload/main": Handler.preupload,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": Handler.batch,
    r"PUT /lfs/(\w+)": Handler.store,
    rf"POST /api/models/{REPO}/commit/main": Handler.commit,
}
