"""A stand-in of the hub: the endpoints that `huggingface_hub` calls to create, push to and read a dataset."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.servers import FileServer, send

TOKEN = "hf_standin"
REPOSITORY = "org/logits"


class Hub(FileServer):
    """One dataset at most; files of 1 kB and more are kept as LFS objects, to which it redirects.

    Attributes:
        commits: what the files were after each commit: path -> content.
        private: whether the dataset is; None while there is none.
        uploads: paths of the LFS objects that were put, in order.
        refuse_uploads_after: how many uploads it takes before it refuses; None for any number.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str | None]] = []
        self.statuses: list[int] = []
        self.ranges, self.pause, self.cut = True, 0.0, 0
        self.commits: list[dict[str, bytes]] = [{}]
        self.private: bool | None = None
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.refuse_uploads_after: int | None = None

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[-1]

    def sha(self, number: int = -1) -> str:
        """The name of a commit."""
        return hashlib.sha1(str(number % len(self.commits)).encode()).hexdigest()

    def find(self, path: str) -> bytes | None:
        """See `FileServer.find`: LFS objects by their hash."""
        return self.objects.get(path.removeprefix("lfs/"))

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer any method; the methods of a dataset ask for the token where it is private."""
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        path = unquote(urlsplit(handler.path).path).strip("/")
        if path.startswith("lfs/"):
            return super().answer(handler) if handler.command == "GET" else self._take(handler, path, body)
        if path == "api/repos/create":
            return self._create(handler, json.loads(body))
        if path == "api/validate-yaml":
            wrong = "made-up" in json.loads(body)["content"]
            errors = [{"message": '"license" must be one of [apache-2.0, …]'}] if wrong else []
            return self._json(handler, {"errors": errors, "warnings": []}, 400 if wrong else 200)
        if handler.command == "POST" and not self._may(handler):
            return self._json(handler, {"error": "forbidden"}, 403)
        if self.private is None or REPOSITORY not in path or (self.private and not self._may(handler)):
            return send(handler, 401 if not self._may(handler) else 404, b"", X_Error_Code="RepoNotFound")
        action = path.partition(REPOSITORY)[2].strip("/")
        if action.startswith("resolve/"):
            return self._resolve(handler, action)
        if self.statuses:
            return self._json(handler, {"error": "broken"}, self.statuses.pop(0))
        if action.startswith("preupload/"):
            return self._modes(handler, json.loads(body))
        if action == "info/lfs/objects/batch" or path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(handler, json.loads(body))
        if action.startswith("commit/"):
            return self._commit(handler, [json.loads(line) for line in body.splitlines()])
        if action.startswith("tree/"):
            return self._json(
                handler,
                [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.files.items()],
            )
        revision = action.removeprefix("revision/") or "main"
        number = self._number(revision)
        if number is None:
            return send(handler, 404, b"", X_Error_Code="RevisionNotFound")
        self._json(handler, {"id": REPOSITORY, "sha": self.sha(number), "private": self.private, "siblings": []})

    def _may(self, handler: BaseHTTPRequestHandler) -> bool:
        return handler.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _number(self, revision: str) -> int | None:
        names = {self.sha(number): number for number in range(len(self.commits))} | {"main": len(self.commits) - 1}
        return names.get(revision)

    def _json(self, handler: BaseHTTPRequestHandler, content: Any, status: int = 200) -> None:
        send(handler, status, json.dumps(content).encode(), Content_Type="application/json")

    def _create(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        assert asked["type"] == "dataset"
        if not self._may(handler):
            return self._json(handler, {"error": "Invalid username or password."}, 401)
        status = 200 if self.private is None else 409
        if self.private is None:
            self.private = asked["visibility"] == "private"
        self._json(handler, {"url": f"{self.url}/datasets/{asked['organization']}/{asked['name']}"}, status)

    def _modes(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        files = []
        for file in asked["files"]:
            held = self.files.get(file["path"])
            mode = "lfs" if file["size"] >= 1000 else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if held is not None:
                blob = b"blob %d\0" % len(held) + held
                files[-1]["oid"] = (hashlib.sha256(held) if mode == "lfs" else hashlib.sha1(blob)).hexdigest()
        self._json(handler, {"files": files})

    def _batch(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        found = []
        for wanted in asked["objects"]:
            found.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in self.objects:
                found[-1]["actions"] = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
        self._json(handler, {"transfer": "basic", "objects": found})

    def _take(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if self.refuse_uploads_after is not None and len(self.uploads) >= self.refuse_uploads_after:
            return self._json(handler, {"error": "the connection to the storage was lost"}, 400)
        oid = path.removeprefix("lfs/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.objects[oid] = body
        self.uploads.append(oid)
        send(handler, 200, b"")

    def _commit(self, handler: BaseHTTPRequestHandler, lines: list[dict[str, Any]]) -> None:
        files = dict(self.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.commits.append(files)
        self._json(
            handler,
            {
                "commitUrl": f"{self.url}/datasets/{REPOSITORY}/commit/{self.sha()}",
                "commitOid": self.sha(),
                "success": True,
            },
        )

    def _resolve(self, handler: BaseHTTPRequestHandler, action: str) -> None:
        _, revision, name = action.split("/", 2)
        number = self._number(revision)
        assert number is not None, "every file is read at a commit"
        data = self.commits[number].get(name)
        if data is None:
            return send(handler, 404, b"", X_Error_Code="EntryNotFound")
        oid = hashlib.sha256(data).hexdigest()
        self.objects.setdefault(oid, data)
        send(handler, 302, b"", Location=f"{self.url}/lfs/{oid}")
