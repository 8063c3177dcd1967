"""A hub on this machine: as much of its protocol as reading and writing a model repository takes."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".npz", ".pt")  # stored by content, and listed with their SHA-256


def commit_of(files):
    """A commit's forty digits: any content has its own."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Hub:
    """Repositories by name, each with one branch, and how the hub misbehaves.

    `requests` are the (method, path) of what was asked, `resumed` the offsets of transfers that were
    taken up again; `uploaded` are contents by their SHA-256, `messages` those of commits, and with
    `read_only` nobody may write; `served[path]` are bytes given instead of the listed ones; `broken` are
    paths whose next transfer ends in the middle; `status` answers everything if it is set.
    """

    def __init__(self):
        self.repos, self.requests, self.served = {}, [], {}
        self.resumed = []
        self.broken, self.gated, self.status = set(), set(), None
        self.private, self.uploaded, self.messages, self.read_only = set(), {}, [], False
        self.endpoint = ""

    def add(self, repo, files):
        self.repos[repo] = dict(files)

    @property
    def downloads(self):
        """Paths whose content was asked for, in order."""
        return [path for method, path in self.requests if method == "GET" and "/resolve/" in path]


class Refused(Exception):
    def __init__(self, status, code=None, about=""):
        self.status, self.code, self.about = status, code, about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        try:
            if hub.status is not None:
                raise Refused(hub.status)
            if self.command == "PUT" or "lfs" in path or path.startswith(("/api/repos", "/api/validate")):
                self.send(json.dumps(self.write(path, body)).encode())
            elif path.startswith("/api/models/"):
                self.send(json.dumps(self.api(path.removeprefix("/api/models/"), body)).encode())
            else:
                self.resolve(path.removeprefix("/"))
        except Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self.send(
                json.dumps({"url": f"{hub.endpoint}/{refused.about}"}).encode(),
                status=refused.status,
                headers=headers,
            )

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def write(self, path, body):
        """What comes before a commit."""
        hub = self.server.hub
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if hub.read_only:
            raise Refused(403)
        if self.command == "PUT":
            hub.uploaded[hashlib.sha256(body).hexdigest()] = body
            return {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name in hub.repos:
                raise Refused(409, about=name)
            hub.add(name, {})
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.private |= {name} if private else set()
            return {"url": f"{hub.endpoint}/{name}"}
        return {
            "transfer": "basic",
            "objects": [
                entry | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ],
        }

    def commit(self, repo, body):
        """Lines of JSON: a header, and files by content or by the SHA-256 of what was uploaded."""
        hub = self.server.hub
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            else:
                hub.repos[repo][value["path"]] = hub.uploaded[value["oid"]]
        oid = commit_of(hub.repos[repo])
        return {"commitOid": oid, "commitUrl": f"{hub.endpoint}/{repo}/commit/{oid}"}

    def repo(self, organisation, name, revision):
        files = self.server.hub.repos.get(f"{organisation}/{name}")
        if files is None:
            raise Refused(404, "RepoNotFound")
        if revision not in ("main", commit_of(files)):
            raise Refused(404, "RevisionNotFound")
        return files

    def api(self, path, body):
        path += "/revision/main" * (path.count("/") == 1)  # a repository itself
        organisation, name, what, revision, *rest = path.split("/")
        files = self.repo(organisation, name, revision)
        entries = [describe(path, data) for path, data in files.items()]
        folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
        entries += [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in sorted(folders)]
        if what == "preupload":
            return {
                "files": [
                    {
                        "path": asked["path"],
                        "uploadMode": "lfs" if asked["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                    }
                    for asked in json.loads(body)["files"]
                ]
            }
        if what == "commit":
            return self.commit(f"{organisation}/{name}", body)
        if what == "revision":
            return {"id": f"{organisation}/{name}", "sha": commit_of(files), "siblings": []}
        if what == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return [entry for entry in entries if entry["path"] in wanted]
        folder = "/".join(rest)
        if folder not in folders | {""}:
            raise Refused(404, "EntryNotFound")
        return [entry for entry in entries if entry["path"].rpartition("/")[0] == folder]

    def resolve(self, path):
        hub = self.server.hub
        organisation, name, _, revision, file = path.split("/", 4)
        files = self.repo(organisation, name, revision)
        if f"{organisation}/{name}" in hub.gated:
            raise Refused(403, "GatedRepo")
        if file not in files:
            raise Refused(404, "EntryNotFound")
        entry = describe(file, files[file])
        data = hub.served.get(file, files[file])
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers["X-Linked-Etag"] = f'"{entry["lfs"]["oid"]}"'
            headers["X-Linked-Size"] = str(len(data))
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start:
            hub.resumed.append(start)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        broken = self.command == "GET" and file in hub.broken
        hub.broken -= {file} if broken else set()
        self.send(data[start:], status=206 if start else 200, headers=headers, broken=broken)

    def send(self, data, *, status=200, headers=None, broken=False):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if broken else data)
        self.close_connection |= broken


def describe(path, data):
    """A file as the hub lists it."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": path, "size": len(data), "oid": git}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 100}
    return entry


@contextmanager
def running():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub()
    server.hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
