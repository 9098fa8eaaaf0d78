"""A Hub of Hugging Face on this machine: as much of its protocol as pushing and loading need."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubHandler(BaseHTTPRequestHandler):
    """What pushing and loading need of the Hub's protocol; `repositories` holds {id: {commit: {path: bytes}}}."""

    protocol_version = "HTTP/1.1"

    def answer(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        """No line per request."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.split("?")[0].strip("/").split("/")
        repositories = self.server.repositories
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = wanted["name"]
            repository = f"someone/{name}"
            exists = repository in repositories
            if not exists:
                self.server.commit(repository, {})
                if wanted.get("private") or wanted.get("visibility") == "private":
                    self.server.private.add(repository)
            url = f"{self.server.endpoint}/{repository}"
            return self.answer({"url": url, "name": repository, "id": repository}, status=409 if exists else 200)
        repository = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]}
            )
        if parts[4] == "commit":
            entries = [json.loads(line) for line in body.splitlines()]
            files = [entry["value"] for entry in entries if entry["key"] == "file"]
            commit = self.server.commit(repository, {file["path"]: base64.b64decode(file["content"]) for file in files})
            url = f"{self.server.endpoint}/{repository}/commit/{commit}"
            return self.answer({"commitOid": commit, "commitUrl": url, "success": True})
        return self.answer({}, status=404)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            return self.answer({"type": "user", "name": "someone", "orgs": [], "auth": {"type": "access_token"}})
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repository not in self.server.repositories:
            return self.answer({}, status=404, X_Error_Code="RepoNotFound")
        commits = self.server.repositories[repository]
        commit = next((part for part in parts if part in commits), None) or next(reversed(commits))
        files = commits[commit]
        if parts[0] == "api" and "tree" in parts:
            return self.answer([{"type": "file", "path": p, "size": len(d), "oid": p} for p, d in files.items()])
        if parts[0] == "api":
            siblings = [{"rfilename": path} for path in files]
            private = repository in self.server.private
            return self.answer({"id": repository, "sha": commit, "siblings": siblings, "private": private, "tags": []})
        data = files.get("/".join(parts[4:]))
        if data is None:
            return self.answer({}, status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


class Hub(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.endpoint, self.repositories = f"http://127.0.0.1:{self.server_port}", {}
        self.private = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def commit(self, repository, files):
        """Adds `files` to the newest state of a repository, and returns the name of the new state."""
        commits = self.repositories.setdefault(repository, {})
        files = {**(commits[next(reversed(commits))] if commits else {}), **files}
        name = hashlib.sha1(f"{len(commits)} {repository} {sorted(files.items())}".encode()).hexdigest()
        commits[name] = files
        return name

    def files(self, repository):
        """The newest state of a repository, {path: bytes}."""
        commits = self.repositories[repository]
        return commits[next(reversed(commits))]
