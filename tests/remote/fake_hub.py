"""A stand-in for the Hugging Face Hub, as far as `huggingface_hub` asks for it when files are read.

Repositories have commits. A file larger than `LFS` bytes, other than JSON, is kept in LFS: the
Hub redirects to another server, with a signed address, and gives the SHA-256 as the entity tag.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from bad_server import BadServer, Handler

if TYPE_CHECKING:
    from collections.abc import Mapping

LFS = 1000


def in_lfs(name: str, data: bytes) -> bool:
    return len(data) > LFS and not name.endswith(".json")


class FakeHub:
    """The Hub, and the server of its large files.

    Args:
        hub: A server.
        cdn: Another one.

    Attributes:
        branches: Repository -> branch -> commit.
        commits: Commit -> name -> contents.
        token: What requests must have, if it is not empty.
        lfs_api: Whether the Hub tells the addresses of several objects at once.
        lfs_fields: What a client has to send with a request for an object, besides.
        lfs_target: In place of the right address, if it is not empty.
        lfs_answer: In place of the right objects, if there is any.
    """

    def __init__(self, hub: BadServer, cdn: BadServer) -> None:
        self.hub, self.cdn = hub, cdn
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.token = ""
        self.signature = "sig=1"
        self.lfs_api = True
        self.lfs_fields: dict[str, str] = {}
        self.lfs_target = ""
        self.lfs_answer: list[Any] = []
        hub.fault = self.answer
        cdn.fault = self.check_signature

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        found = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[found] = dict(files)
        self.branches.setdefault(repository, {})[branch] = found
        for data in files.values():
            self.cdn.files[hashlib.sha256(data).hexdigest()] = data
        return found

    def check_signature(self, handler: Handler, number: int) -> bool:
        if handler.path.partition("?")[2] != self.signature:
            handler.reply(403)
            return True
        return False

    def answer(self, handler: Handler, number: int) -> bool:
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        if self.token and handler.headers["Authorization"] != f"Bearer {self.token}":
            handler.reply(401, X_Error_Code="GatedRepo", X_Error_Message="no")
            return True
        path = handler.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.info(handler, match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.tree(handler, *match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(handler, *match.groups())
        elif self.lfs_api and re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            self.addresses(handler, json.loads(body))
        else:
            handler.reply(404)
        return True

    def _commit(self, handler: Handler, repository: str, revision: str) -> str | None:
        branches = self.branches.get(repository)
        if branches is None:
            handler.reply(404, X_Error_Code="RepoNotFound", X_Error_Message="no")
            return None
        revision = revision.replace("%2F", "/")
        found = branches.get(revision, revision if revision in self.commits else None)
        if found is None:
            handler.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="no")
        return found

    def info(self, handler: Handler, repository: str, revision: str) -> None:
        found = self._commit(handler, repository, revision)
        if found is None:
            return
        siblings: list[dict[str, Any]] = []
        for name, data in self.commits[found].items():
            each: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if in_lfs(name, data):
                digest = hashlib.sha256(data).hexdigest()
                each["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(each)
        body = json.dumps({"id": repository, "sha": found, "siblings": siblings}).encode()
        handler.reply(200, body, Content_Type="application/json")

    def tree(self, handler: Handler, repository: str, revision: str) -> None:
        """The files, as `HfFileSystem` asks for them; folders have none."""
        found = self._commit(handler, repository, revision)
        if found is None:
            return
        files: list[dict[str, Any]] = []
        for name, data in self.commits[found].items():
            each: dict[str, Any] = {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": "0" * 40,
            }
            if in_lfs(name, data):
                digest = hashlib.sha256(data).hexdigest()
                each["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
            files.append(each)
        handler.reply(200, json.dumps(files).encode(), Content_Type="application/json")

    def resolve(self, handler: Handler, repository: str, revision: str, name: str) -> None:
        found = self._commit(handler, repository, revision)
        if found is None:
            return
        data = self.commits[found].get(name)
        if data is None:
            handler.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="no")
            return
        fields = {"X_Repo_Commit": found}
        digest = hashlib.sha256(data).hexdigest()
        if in_lfs(name, data):
            handler.reply(
                302, Location=f"{self.cdn.url}/{digest}?{self.signature}",
                X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(len(data)), **fields,
            )  # fmt: skip
            return
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        if handler.command == "HEAD" or handler.headers["Range"] is None:
            handler.reply(200, data, ETag=etag, **fields)
        else:
            begin, end = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"]).groups()  # type: ignore[union-attr]
            part = data[int(begin) : int(end) + 1]
            last = int(begin) + len(part) - 1
            where = f"bytes {begin}-{last}/{len(data)}"
            handler.reply(206, part, ETag=etag, Content_Range=where, **fields)

    def addresses(self, handler: Handler, question: dict[str, Any]) -> None:
        """The Git LFS batch API."""
        assert question["operation"] == "download"
        objects = [
            {**each, "actions": {"download": self.download(each["oid"])}}
            if each["oid"] in self.cdn.files
            else {**each, "error": {"code": 404, "message": "no"}}
            for each in question["objects"]
        ]
        answer = {"transfer": "basic", "objects": self.lfs_answer or objects}
        body = json.dumps(answer).encode()
        handler.reply(200, body, Content_Type="application/vnd.git-lfs+json")

    def download(self, digest: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "href": self.lfs_target or f"{self.cdn.url}/{digest}?{self.signature}"
        }
        return {**found, "header": self.lfs_fields} if self.lfs_fields else found
