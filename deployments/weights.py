"""A model's files of the Hugging Face hub on this host: checked by content, gone on with where a download broke off, kept for good.

They are in the hub's own cache (`HF_HOME`, or `engine.download_dir`) in its own layout, so other tools find them, too. Beside them
lies what they should be: names, sizes and digests as the hub told them. A file is hashed when it has come, and again when its size
or time changed; so starts are quick, and what was cut short or replaced is fetched anew. A model that is whole is used as it is,
without a question to the hub. `deployments.sharing` has the files come from other hosts.

    python -m deployments.weights MODEL     has a model's files here, whole
"""

import hashlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

from deployments.errors import WeightsError
from deployments.settings import MODEL_FILES

Tell = Callable[[str, int, int], None]
"""Hears of progress: from where, bytes here, bytes in all."""
ATTEMPTS = 2
DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class File:
    """What a file must be. The digest is a SHA-256 or, of small files, git's SHA-1 of a blob; the hub gives no other for them."""

    size: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The files of a model at a commit, by name."""

    commit: str
    files: dict[str, File]

    def __post_init__(self) -> None:
        """Refuse what would lie elsewhere than in the cache. Raises WeightsError."""
        wrong = [name for name, file in self.files.items() if ".." in Path(name).parts or not DIGEST.fullmatch(file.digest)]
        if wrong or not re.fullmatch(r"[\w.-]+", self.commit) or any(Path(name).is_absolute() for name in self.files):
            raise WeightsError(f"not the names of a model's files: {wrong or [self.commit]}")

    def only(self, patterns: Iterable[str]) -> dict[str, File]:
        """Return the files whose name fits one of the patterns, small ones first."""
        wanted = {name: file for name, file in self.files.items() if any(fnmatch(name, pattern) for pattern in patterns)}
        return dict(sorted(wanted.items(), key=lambda item: item[1].size))

    def dump(self) -> dict[str, Any]:
        """Return what `load` takes."""
        return asdict(self)

    @classmethod
    def load(cls, dumped: dict[str, Any]) -> "Manifest":
        """Return the manifest again."""
        return cls(dumped["commit"], {name: File(**file) for name, file in dumped["files"].items()})


class Source(Protocol):
    """Where files come from."""

    name: str

    def get(self, manifest: Manifest, name: str, partial: Path, tell: Callable[[int], None]) -> None:
        """Append what `partial` lacks of a file; `tell` hears of its bytes so far. Raises WeightsError."""


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
        self._guessed = False
        self.manifest: Manifest | None = None
        self.look()

    def look(self) -> None:
        """Read anew what is known of the files, by other processes, too."""
        if self._record.is_file():
            read = json.loads(self._record.read_text())
            self._checked |= read["checked"]
            self.manifest = Manifest.load(read["manifest"])

    def lock(self, file: File) -> AbstractContextManager[Any]:
        """Return a file's lock, which one process of those that share this cache has at a time; it goes with the process."""
        from filelock import FileLock

        locks = self.folder / "satori-locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / file.digest)

    def expect(self, manifest: Manifest) -> None:
        """Take what the files should be."""
        self.manifest = manifest
        self._guessed = False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def guess(self) -> None:
        """Expect what other tools left in the cache, where the hub cannot be asked. Their files have their digests as names."""
        reference = self.folder / "refs" / self.revision
        commit = reference.read_text() if reference.is_file() else self.revision
        snapshot = self.folder / "snapshots" / commit
        links = {str(link.relative_to(snapshot)): link.resolve() for link in snapshot.rglob("*") if link.is_symlink()}
        files = {name: File(blob.stat().st_size, blob.name) for name, blob in links.items() if blob.is_file()}
        index = snapshot / "model.safetensors.index.json"
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
        if "config.json" in files and shards <= files.keys() and len(files) == len(links):
            self.manifest = Manifest(commit, files)
            self._guessed = True

    def _write(self) -> None:
        assert self.manifest is not None
        if self._guessed:
            return
        new = self._new(self._record)
        new.write_text(json.dumps({"manifest": self.manifest.dump(), "checked": self._checked}))
        new.replace(self._record)

    @staticmethod
    def _new(path: Path) -> Path:
        """Return where what is to take a file's place is made: whoever looks finds the old or the new one, whole."""
        return path.with_name(f".{path.name}.{uuid.uuid4().hex}")

    def blob(self, file: File) -> Path:
        """Return where a file's content lies."""
        return self.folder / "blobs" / file.digest

    def partial(self, file: File) -> Path:
        """Return where a file's content comes together."""
        return self.blob(file).with_suffix(".satori-incomplete")

    def has(self, file: File) -> bool:
        """Return whether a file is here, as it should be. It is read where it was not yet, or changed since; a wrong one goes."""
        blob = self.blob(file)
        return self._is_as_checked(file) or (blob.is_file() and self._accept(blob, file))

    def holds(self) -> set[str]:
        """Return the digests of the files that are whole, by a look at their size and time."""
        files = self.manifest.files.values() if self.manifest else ()
        return {file.digest for file in files if self._is_as_checked(file)}

    def _is_as_checked(self, file: File) -> bool:
        try:
            found = self.blob(file).stat()
        except FileNotFoundError:
            return False
        return found.st_size == file.size and self._checked.get(file.digest) == found.st_mtime_ns

    def _accept(self, path: Path, file: File) -> bool:
        """Make a file one of the model's if it is as it should be; remove it otherwise."""
        if path.stat().st_size != file.size or digest(path, len(file.digest)) != file.digest:
            path.unlink()
            return False
        blob = self.blob(file)
        path.replace(blob)
        self.look()
        self._checked[file.digest] = blob.stat().st_mtime_ns
        self._write()
        return True

    def missing(self, patterns: Iterable[str]) -> dict[str, File]:
        """Return the files that are not here, small ones first. All, if it is not known what they should be."""
        assert self.manifest is not None
        return {name: file for name, file in self.manifest.only(patterns).items() if not self.has(file)}

    def whole(self, patterns: Iterable[str]) -> Path | None:
        """Return the model's directory if all files are here, as they should be; None otherwise."""
        if self.manifest is None or self.missing(patterns):
            return None
        snapshot = self.folder / "snapshots" / self.manifest.commit
        for name, file in self.manifest.only(patterns).items():
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self.blob(file), link.parent)
            if not link.is_symlink() or link.readlink() != Path(target):
                new = self._new(link)
                new.symlink_to(target)
                new.replace(link)
        reference = self.folder / "refs" / self.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(self.manifest.commit)
        return snapshot

    def fill(self, name: str, source: Source, patterns: Iterable[str], tell: Tell) -> bool:
        """Get a file from a source if it is not here; return whether it is as it should be. What came is kept for the next time.

        `tell` hears of the bytes of all files that fit the patterns.
        """
        assert self.manifest is not None
        file = self.manifest.files[name]
        with self.lock(file):
            self.look()
            return self.has(file) or self._get(name, file, source, patterns, tell)

    def _get(self, name: str, file: File, source: Source, patterns: Iterable[str], tell: Tell) -> bool:
        assert self.manifest is not None
        held = self.holds()
        sizes = {file.digest: file.size for file in self.manifest.only(patterns).values()}
        before, total = sum(size for found, size in sizes.items() if found in held), sum(sizes.values())
        partial = self.partial(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.is_file() and partial.stat().st_size > file.size:
            partial.unlink()
        source.get(self.manifest, name, partial, lambda here: tell(source.name, before + here, total))
        return self._accept(partial, file)


class Hub:
    """The Hugging Face hub, or a mirror of it at `endpoint`."""

    def __init__(self, model: str, revision: str | None = None, endpoint: str | None = None) -> None:
        self.name = endpoint or "the hub"
        self._model, self._revision, self._endpoint = model, revision, endpoint

    def manifest(self) -> Manifest:
        """Return what the files should be. Raises WeightsError."""
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=self._endpoint).model_info(self._model, revision=self._revision, files_metadata=True)
        except Exception as error:  # the hub's client raises many kinds, of several libraries
            raise WeightsError(f"model={self._model!r}: could not be downloaded: {error}") from error
        files = {
            found.rfilename: File(found.size, found.lfs.sha256 if found.lfs else found.blob_id)
            for found in info.siblings
            if found.size is not None
        }
        return Manifest(info.sha, files)

    def get(self, manifest: Manifest, name: str, partial: Path, tell: Callable[[int], None]) -> None:
        """Append what `partial` lacks of a file. Lost connections are taken up again some times."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        disable_progress_bars()
        url = hf_hub_url(self._model, name, revision=manifest.commit, endpoint=self._endpoint)
        headers = build_hf_headers()
        try:
            location = get_hf_file_metadata(url, endpoint=self._endpoint, retry_on_errors=True).location
            if location.split("/")[:3] != url.split("/")[:3]:
                headers.pop("authorization", None)  # a signed address elsewhere; the token is the hub's
            with _Told(partial, tell) as into:
                http_get(location, into, resume_size=into.tell(), headers=headers, expected_size=manifest.files[name].size)
        except Exception as error:  # as above
            raise WeightsError(f"model={self._model!r}: {name} could not be downloaded: {error}") from error


class _Told:
    """A file that is appended to, and tells its size."""

    def __init__(self, path: Path, tell: Callable[[int], None]) -> None:
        self._file, self._tell = path.open("ab"), tell
        self.truncate, self.seek, self.tell = self._file.truncate, self._file.seek, self._file.tell

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._tell(self._file.tell())
        return written

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def fetch(store: Store, hub: Hub, patterns: Iterable[str], tell: Tell) -> Path:
    """Return a model's directory with all files that fit the patterns, after having had them come from the hub where they lack.

    Raises WeightsError when they can be had neither here nor there.
    """
    if store.manifest is None:
        ask(store, hub)
    for name in store.missing(patterns):
        for _ in range(ATTEMPTS):
            if store.fill(name, hub, patterns, tell):
                break
        else:
            raise WeightsError(f"{name} came {ATTEMPTS} times otherwise than the hub says it is")
    if (path := store.whole(patterns)) is None:
        raise WeightsError(f"files in {store.folder} change while they are read")
    return path


def paced(say: Callable[[str], None], every_s: float = 2.0) -> Tell:
    """Return what hears of progress and says it in words, now and then."""
    told = -every_s

    def tell(source: str, here: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= every_s:
            told = time.monotonic()
            say(f"{here / 1e9:.2f} of {total / 1e9:.2f} GB from {source}")

    return tell


def ask(store: Store, hub: Hub) -> None:
    """Have the store expect what the hub says or, where that cannot be asked, what is in the cache. Raises WeightsError."""
    try:
        store.expect(hub.manifest())
    except WeightsError:
        store.guess()
        if store.manifest is None:
            raise


def digest(path: Path, length: int) -> str:
    """Return a file's SHA-256, or git's SHA-1 of it as a blob where `length` is 40."""
    hashed = hashlib.sha256() if length == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            hashed.update(chunk)
    return hashed.hexdigest()


def main(arguments: list[str]) -> int:
    """Have a model's files here and print where; return the exit status."""
    if len(arguments) != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", arguments[0]):
        print(f"error: {' '.join(arguments)!r}: allowed: a Hugging Face id, owner/name", file=sys.stderr)
        return 1
    try:
        print(fetch(Store(arguments[0]), Hub(arguments[0]), MODEL_FILES, paced(lambda progress: print(progress, flush=True))))
    except WeightsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
