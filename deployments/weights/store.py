"""The files of a Hugging Face model on this host: checked by content, resumed where a download broke off, kept for good.

They are in the hub's own cache (`HF_HOME`, or `engine.download_dir`) in its own layout, so other tools find them, too. A record
beside them says what they should be: names, sizes and digests as the hub lists them. A file is hashed when it has arrived, and
again when its size or time has changed. So starts are quick, and a truncated or replaced file is downloaded again. A complete
model is used as it is, without asking the hub. `deployments.weights.peers` gets the files from other hosts.

    python -m deployments.weights MODEL     downloads a model's files to this host
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from deployments.errors import WeightsError

Progress = Callable[[str, int, int], None]
"""Is called with the progress of a download: the source's name, the bytes here, the bytes in total."""
ATTEMPTS = 2
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class File:
    """What a file must be. The digest is a SHA-256 or, for small files, git's SHA-1 of a blob: the hub gives no other for them."""

    size: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The files of a model at a commit, by name."""

    commit: str
    files: dict[str, File]

    def __post_init__(self) -> None:
        """Refuse names that lead out of the cache. Raises WeightsError."""
        wrong = [name for name, file in self.files.items() if ".." in Path(name).parts or not DIGEST.fullmatch(file.digest)]
        if wrong or not re.fullmatch(r"[\w.-]+", self.commit) or any(Path(name).is_absolute() for name in self.files):
            raise WeightsError(f"not the names of a model's files: {wrong or [self.commit]}")

    def only(self, patterns: Iterable[str]) -> dict[str, File]:
        """Return the files whose name matches one of the patterns, small ones first."""
        wanted = {name: file for name, file in self.files.items() if any(fnmatch(name, pattern) for pattern in patterns)}
        return dict(sorted(wanted.items(), key=lambda item: item[1].size))

    def dump(self) -> dict[str, Any]:
        """Return a dictionary that `load` takes."""
        return asdict(self)

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> "Manifest":
        """Return the manifest that was dumped."""
        return cls(dumped["commit"], {name: File(**file) for name, file in dumped["files"].items()})


class Source(Protocol):
    """A source of files: the hub or another host."""

    name: str

    def get(self, manifest: Manifest, name: str, partial: Path, report: Callable[[int], None]) -> None:
        """Append to `partial` what it lacks of a file; call `report` with its bytes so far. Raises WeightsError."""


class Store:
    """A model's files on this host. `revision` is a branch, tag or commit, `cache_dir` a cache other than the hub's default."""

    def __init__(self, model: str, revision: str | None = None, cache_dir: str | None = None) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self.key = (model, revision, cache_dir)
        self.revision = revision or "main"
        self.folder = Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=model, repo_type="model")
        self._record = self.folder / f"satori-{self.revision.replace('/', '--')}.json"
        self._checked: dict[str, int] = {}
        self._from_cache = False
        self.manifest: Manifest | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read the record of the files again; other processes write it, too."""
        if self._record.is_file():
            record = json.loads(self._record.read_text())
            self._checked |= record["checked"]
            self.manifest = Manifest.load(record["manifest"])

    def lock(self, file: File) -> AbstractContextManager[Any]:
        """Return a file's lock, for all processes that share this cache. It is released when the process that holds it ends."""
        from filelock import FileLock

        locks = self.folder / "satori-locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / file.digest)

    def expect(self, manifest: Manifest) -> None:
        """Set and record what the files should be."""
        self.manifest = manifest
        self._from_cache = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def expect_cached(self) -> None:
        """Expect the files that other tools left in the cache, for when the hub cannot be asked. Their names are their digests."""
        reference = self.folder / "refs" / self.revision
        commit = reference.read_text() if reference.is_file() else self.revision
        snapshot = self.folder / "snapshots" / commit
        links = {str(link.relative_to(snapshot)): link.resolve() for link in snapshot.rglob("*") if link.is_symlink()}
        files = {name: File(blob.stat().st_size, blob.name) for name, blob in links.items() if blob.is_file()}
        index = snapshot / "model.safetensors.index.json"
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
        if "config.json" in files and shards <= files.keys() and len(files) == len(links):
            self.manifest = Manifest(commit, files)
            self._from_cache = True

    def _write(self) -> None:
        assert self.manifest is not None
        if self._from_cache:
            return
        new = self._temporary(self._record)
        new.write_text(json.dumps({"manifest": self.manifest.dump(), "checked": self._checked}))
        new.replace(self._record)

    @staticmethod
    def _temporary(path: Path) -> Path:
        """Return where to write a file's replacement, so that readers find either the old or the new file, complete."""
        return path.with_name(f".{path.name}.{uuid.uuid4().hex}")

    def blob(self, file: File) -> Path:
        """Return the path of a file's content."""
        return self.folder / "blobs" / file.digest

    def partial(self, file: File) -> Path:
        """Return the path of a file's content while it is incomplete."""
        return self.blob(file).with_suffix(".satori-incomplete")

    def has(self, file: File) -> bool:
        """Return whether a file is here, as it should be. It is hashed if it is new or has changed; a wrong one is removed."""
        blob = self.blob(file)
        return self._is_as_checked(file) or (blob.is_file() and self._accept(blob, file))

    def holds(self) -> set[str]:
        """Return the digests of the complete files, judged by size and time without reading them."""
        files = self.manifest.files.values() if self.manifest else ()
        return {file.digest for file in files if self._is_as_checked(file)}

    def _is_as_checked(self, file: File) -> bool:
        try:
            found = self.blob(file).stat()
        except FileNotFoundError:
            return False
        return found.st_size == file.size and self._checked.get(file.digest) == found.st_mtime_ns

    def _accept(self, path: Path, file: File) -> bool:
        """Make a file one of the model's if it is as it should be, else remove it; return which."""
        if path.stat().st_size != file.size or digest(path, len(file.digest)) != file.digest:
            path.unlink()
            return False
        blob = self.blob(file)
        path.replace(blob)
        self.refresh()
        self._checked[file.digest] = blob.stat().st_mtime_ns
        self._write()
        return True

    def missing(self, patterns: Iterable[str]) -> dict[str, File]:
        """Return the files that match the patterns and are not here as they should be, small ones first."""
        assert self.manifest is not None
        return {name: file for name, file in self.manifest.only(patterns).items() if not self.has(file)}

    def whole(self, patterns: Iterable[str]) -> Path | None:
        """Return the model's directory if all files that match the patterns are here, as they should be; None otherwise."""
        if self.manifest is None or self.missing(patterns):
            return None
        snapshot = self.folder / "snapshots" / self.manifest.commit
        for name, file in self.manifest.only(patterns).items():
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self.blob(file), link.parent)
            if not link.is_symlink() or link.readlink() != Path(target):
                new = self._temporary(link)
                new.symlink_to(target)
                new.replace(link)
        reference = self.folder / "refs" / self.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(self.manifest.commit)
        return snapshot

    def fill(self, name: str, source: Source, patterns: Iterable[str], report: Progress) -> bool:
        """Get a file from a source if it is not here; return whether it is as it should be.

        If it breaks off, the part that has arrived is kept for the next time. `report` is called with the bytes of all files that
        match the patterns.
        """
        assert self.manifest is not None
        file = self.manifest.files[name]
        with self.lock(file):
            self.refresh()
            return self.has(file) or self._get(name, file, source, patterns, report)

    def _get(self, name: str, file: File, source: Source, patterns: Iterable[str], report: Progress) -> bool:
        assert self.manifest is not None
        held = self.holds()
        sizes = {file.digest: file.size for file in self.manifest.only(patterns).values()}
        before, total = sum(size for found, size in sizes.items() if found in held), sum(sizes.values())
        partial = self.partial(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.is_file() and partial.stat().st_size > file.size:
            partial.unlink()
        source.get(self.manifest, name, partial, lambda here: report(source.name, before + here, total))
        return self._accept(partial, file)


def digest(path: Path, length: int) -> str:
    """Return a file's SHA-256, or git's SHA-1 of it as a blob where `length` is 40."""
    hashed = hashlib.sha256() if length == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            hashed.update(chunk)
    return hashed.hexdigest()
