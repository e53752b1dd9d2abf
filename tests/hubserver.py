"""The part of the Hugging Face hub's interface that publishing uses, on this machine."""

import base64
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

TOKEN = "hf_right"
# Larger files go to the large-file store, as on the hub.
LARGE = 100_000


class Hub(ThreadingHTTPServer):
    """`repos` are the repositories: {name: {file: bytes}}; `made` how each was asked for; `commits` counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.made: dict[str, dict[str, Any]] = {}
        self.store: dict[str, bytes] = {}
        self.commits = 0
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Routes by regular expression."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def respond(self) -> None:
        path = urlparse(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.server
        if match := re.fullmatch(r"/store/(\w+)", path):
            hub.store[match[1]] = body
            return self.answer({})
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
            return self.answer({"url": f"{hub.url}/{name}", "name": name})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path):
            if match[1] not in hub.repos:
                return self.answer({"error": "Repository not found"}, 404)
            files = [{"rfilename": name} for name in hub.repos[match[1]]]
            return self.answer({"id": match[1], "siblings": files, "sha": "0" * 40, "private": True})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main", path):
            files = [
                {"type": "file", "path": n, "size": len(d), "oid": "0"}
                for n, d in hub.repos[match[1]].items()
            ]
            return self.answer(files)
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
