"""The part of the Hugging Face hub's interface that its client needs to publish and fetch models, on this machine."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

TOKEN = "hf_right"
# Larger files go to the large-file store, as on the hub.
LARGE = 100_000
SHA = "0" * 39 + "1"
# Nobody listens there.
NOWHERE = "http://127.0.0.1:9"


@contextmanager
def running_hub() -> Iterator["Hub"]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path | None = None, token: str = "") -> None:
    """Point the hub's client of this process elsewhere; of new ones, HF_ENDPOINT does it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    if cache is not None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", token)


READ = re.compile(
    r"(?P<api>/api(?=/models/|/datasets/))?(/models|(?P<kind>/datasets))?/(?P<owner>[^/]+)/(?P<name>[^/]+)"
    r"(?(api)(/revision/(?P<revision>[^/]+))?(/tree/(?P<tree>[^/]+)(/(?P<below>.+))?)?"
    r"|/resolve/(?P<resolved>[^/]+)/(?P<file>.+))"
)


def listed(path: str, data: bytes) -> dict[str, Any]:
    """A file in the list of a repository's."""
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if len(data) <= LARGE:
        return entry
    sha256 = hashlib.sha256(data).hexdigest()
    return {**entry, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}}


class Hub(ThreadingHTTPServer):
    """What it holds and what was asked of it.

    repos:   the repositories, {name: {file: bytes}}; those of datasets are called datasets/OWNER/NAME
    private: names of those that need the token
    gated:   names of those whose files nobody gets
    commits_of: older commits that each has, with the same files
    made:    how each new one was asked for
    commits: how many there were
    broken:  commits fail; down: so does reading
    served:  names of the files that were sent, REPOSITORY/FILE
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.commits_of: dict[str, set[str]] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.served: list[str] = []
        self.store: dict[str, bytes] = {}
        self.large: dict[str, str] = {}
        self.commits = 0
        self.broken = self.down = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, folder: Path) -> None:
        """A repository with the files of `folder`."""
        self.repos[name] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


class Handler(BaseHTTPRequestHandler):
    """Routes by regular expression."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, content: Any, status: int = 200, code: str = "", **headers: str) -> None:
        """code: why not, as the client reads it"""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"X-Error-Code": code, **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read(self, name: str, what: str, file: str, revision: str) -> None:
        """What anybody may ask of a repository: about it, for the list of its files, for a file."""
        hub, token = self.server, self.headers.get("Authorization")
        if hub.down:
            return self.answer({"error": "Service Unavailable"}, 503)
        if token not in (None, f"Bearer {TOKEN}"):
            return self.answer({}, 401, X_Error_Message="Invalid credentials in Authorization header")
        if name not in hub.repos or (name in hub.private and token is None):
            # To those who are not logged in the hub does not say whether there is one.
            return self.answer(
                {"error": "Repository not found"}, 401 if token is None else 404, "RepoNotFound"
            )
        files = hub.repos[name]
        older = revision in hub.commits_of.get(name, ())
        if revision not in ("main", SHA) and not older:
            return self.answer({"error": f"Invalid rev id: {revision}"}, 404, "RevisionNotFound")
        sha = revision if older else SHA
        if what == "info":
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": name, "siblings": siblings, "sha": sha, "private": name in hub.private})
        if what == "tree":
            found = [listed(path, data) for path, data in files.items() if path.startswith(file)]
            return self.answer(found) if found else self.answer({}, 404, "EntryNotFound")
        if name in hub.gated:
            return self.answer({}, 403 if token else 401, "GatedRepo", X_Repo_Commit=sha)
        if file not in files:
            return self.answer({}, 404, "EntryNotFound", X_Repo_Commit=sha)
        data = files[file]
        if "lfs" not in listed(file, data):
            hub.served += [f"{name}/{file}"] if self.command == "GET" else []
            return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=sha)
        # A large file lies on another host, as the client judges it.
        sha256 = hashlib.sha256(data).hexdigest()
        hub.store[sha256], hub.large[sha256] = data, f"{name}/{file}"
        return self.answer(
            b"",
            302,
            Location=f"{hub.url.replace('127.0.0.1', 'localhost')}/store/{sha256}",
            X_Linked_ETag=f'"{sha256}"',
            X_Linked_Size=str(len(data)),
            X_Repo_Commit=sha,
        )

    def respond(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server
        if match := re.fullmatch(r"/store/(\w+)", path):
            if self.command == "PUT":
                hub.store[match[1]] = body
                return self.answer({})
            hub.served += [hub.large[match[1]]] if match[1] in hub.large else []
            return self.answer(hub.store[match[1]])
        if match := READ.fullmatch(path):
            name = f"{match['kind'] or ''}/{match['owner']}/{match['name']}".removeprefix("/")
            what = "file" if match["file"] else "tree" if match["tree"] else "info"
            revision = match["revision"] or match["tree"] or match["resolved"] or "main"
            return self.read(name, what, match["file"] or match["below"] or "", revision)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/whoami-v2":
            return self.answer({"name": "user", "type": "user", "auth": {}})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            if not name.startswith("user/"):
                return self.answer({"error": "You don't have the rights to create a model there"}, 403)
            if name in hub.repos:
                return self.answer({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
            hub.repos[name], hub.made[name] = {".gitattributes": b""}, wanted
            if wanted.get("visibility") == "private" or wanted.get("private"):
                hub.private.add(name)
            return self.answer({"url": f"{hub.url}/{name}", "name": name})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/store/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            if hub.broken:
                return self.answer({"error": "Internal Error"}, 500)
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.repos[match[1]][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.repos[match[1]][value["path"]] = hub.store[value["oid"]]
            hub.commits += 1
            return self.answer(
                {
                    "success": True,
                    "commitOid": "1" * 40,
                    "commitUrl": f"{hub.url}/{match[1]}/commit/{'1' * 40}",
                }
            )
        return self.answer({"error": f"no {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = respond
