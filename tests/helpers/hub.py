"""A Hugging Face hub on loopback, in this process: repositories in memory, a log of requests, faults on request."""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
_ID = r"(?P<name>[\w.-]+/[\w.-]+)"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, after `skip` others.

    Attributes:
        match: a regular expression over "GET /path".
        do: a status; or reset (no answer), cut (the connection ends in the body), stall (it waits in the body).
        after: bytes of the body before that.
    """

    match: str
    do: str
    times: int = 1
    skip: int = 0
    after: int = 10
    retry_after: int = 1


@dataclass
class FakeHub:
    """The hub's state.

    Attributes:
        repositories: (kind, name) -> branch -> files; kind is models or datasets.
        gated: names whose files need a token.
        log: (method, path, status, bytes of the body) of every request.
    """

    url: str = ""
    repositories: dict[tuple[str, str], dict[str, Files]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str, int | str, int]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, kind: str, name: str, content: Path | Files, branch: str = "main") -> str:
        """Put files in a repository's branch; returns the commit."""
        if isinstance(content, Path):
            content = {str(p.relative_to(content)): p.read_bytes() for p in content.rglob("*") if p.is_file()}
        self.repositories.setdefault((kind, name), {})[branch] = dict(content)
        return commit_of(content)

    def requests(self, match: str = "") -> list[tuple[str, str, int | str, int]]:
        return [entry for entry in self.log if re.search(match, f"{entry[0]} {entry[1]}")]

    def sent(self, match: str = "") -> int:
        """Bytes of bodies."""
        return sum(entry[3] for entry in self.requests(match))

    def take_fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, request):
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault
        return None


def commit_of(files: Files) -> str:
    digest = hashlib.sha1()
    for path in sorted(files):
        digest.update(path.encode() + hashlib.sha1(files[path]).digest())
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args):
        pass

    def do_GET(self):
        fault = self.hub.take_fault(f"{self.command} {unquote(self.path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault and fault.do.isdigit():
            extra = {"Retry-After": str(fault.retry_after)} if fault.do == "429" else {}
            return self.answer(int(fault.do), b"{}", **extra)
        if fault and fault.do == "reset":
            self.hub.log.append((self.command, unquote(self.path), "reset", 0))
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        path = unquote(urlsplit(self.path).path)
        for pattern, handle in (
            (rf"/api/(?P<kind>models|datasets)/{_ID}(/revision/(?P<revision>.+))?", self.info),
            (rf"/(?P<kind>datasets/)?{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
            (r"/api/whoami-v2", self.whoami),
            (r"/api/repos/create", lambda: self.create(json.loads(body))),
            (r"/api/validate-yaml", lambda: self.json({"errors": [], "warnings": []})),
            (rf"/api/models/{_ID}/preupload/main", lambda name: self.preupload(json.loads(body))),
            (rf"/api/models/{_ID}/commit/main", lambda name: self.commit(name, body)),
        ):
            if match := re.fullmatch(pattern, path):
                self.fault = fault
                return handle(**match.groupdict())
        return self.answer(404, b"{}")

    do_HEAD = do_POST = do_GET

    def answer(self, status: int, data: bytes, fault: Fault | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        sent = data if self.command != "HEAD" else b""
        broken = fault is not None and fault.do in ("cut", "stall") and self.command == "GET"
        if broken:
            sent = sent[: fault.after]
        self.hub.log.append((self.command, unquote(self.path), status, len(sent)))
        self.wfile.write(sent)
        if broken:
            self.wfile.flush()
            if fault.do == "stall":
                self.hub.released.wait(30)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def json(self, content: dict, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(content).encode(), self.fault, Content_Type="application/json", **headers)

    def refuse(self, status: int, code: str) -> None:
        self.json({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def files(self, kind: str, name: str, revision: str | None) -> Files | None:
        """Those of a revision, or None after an answer that says why not."""
        branches = self.hub.repositories.get((kind, name))
        if branches is None:
            return self.refuse(401, "RepoNotFound")
        found = branches.get(revision or "main")
        found = found or next((files for files in branches.values() if commit_of(files) == revision), None)
        return self.refuse(404, "RevisionNotFound") if found is None else found

    def info(self, kind, name, revision):
        files = self.files(kind, name, revision)
        if files is not None:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.json({"_id": "1", "id": name, "sha": commit_of(files), "siblings": siblings, "tags": []})

    def resolve(self, kind, name, revision, path):
        files = self.files((kind or "models/").strip("/"), name, revision)
        if files is None:
            return None
        if name in self.hub.gated and not self.headers.get("Authorization"):
            return self.refuse(401, "GatedRepo")
        if path not in files:
            return self.refuse(404, "EntryNotFound")
        data, status = files[path], 200
        about = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": commit_of(files)}
        about["X_Linked_Size"] = str(len(data))
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            if first >= len(data):
                return self.answer(416, b"")
            about["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        return self.answer(status, data, self.fault, Accept_Ranges="bytes", **about)

    def whoami(self):
        if not self.headers.get("Authorization"):
            return self.refuse(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}}
        return self.json({"type": "user", "id": "1", "name": "me", "orgs": [{"name": "team"}], "auth": token})

    def create(self, asked):
        owner = asked.get("organization") or "me"
        if owner == "team":
            return self.refuse(403, "You don't have the rights to create a model under team")
        name = f"{owner}/{asked['name']}"
        known = ("models", name) in self.hub.repositories
        self.hub.repositories.setdefault(("models", name), {"main": {}})
        return self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": "1"}, 409 if known else 200)

    def preupload(self, asked):
        regular = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked["files"]]
        self.json({"files": regular})

    def commit(self, name, body):
        files = self.hub.repositories["models", name]["main"]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.hub.url}/{name}/commit/{commit_of(files)}"
        self.json({"success": True, "commitOid": commit_of(files), "commitUrl": url, "hookOutput": ""})


@contextmanager
def fake_hub():
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "fault": None}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()


def constants_for(url, cache):
    """The values of `huggingface_hub.constants` with which a process uses the hub at `url`."""
    return {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
