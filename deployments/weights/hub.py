"""The Hugging Face hub, or a mirror of it, as a source of a model's files."""

from collections.abc import Callable
from pathlib import Path

from deployments.errors import WeightsError
from deployments.weights.store import File, Manifest


class Hub:
    """The Hugging Face hub, or a mirror of it at `endpoint`."""

    def __init__(self, model: str, revision: str | None = None, endpoint: str | None = None) -> None:
        self.name = endpoint or "the hub"
        self._model, self._revision, self._endpoint = model, revision, endpoint

    def manifest(self) -> Manifest:
        """Return the names, sizes and digests of the model's files. Raises WeightsError."""
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

    def get(self, manifest: Manifest, name: str, partial: Path, report: Callable[[int], None]) -> None:
        """Append to `partial` what it lacks of a file. A lost connection is resumed a few times. Raises WeightsError."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        disable_progress_bars()
        url = hf_hub_url(self._model, name, revision=manifest.commit, endpoint=self._endpoint)
        headers = build_hf_headers()
        try:
            location = get_hf_file_metadata(url, endpoint=self._endpoint, retry_on_errors=True).location
            if location.split("/")[:3] != url.split("/")[:3]:
                headers.pop("authorization", None)  # a signed URL on another host; the token is only for the hub
            with _ReportingFile(partial, report) as into:
                http_get(location, into, resume_size=into.tell(), headers=headers, expected_size=manifest.files[name].size)
        except Exception as error:  # of many kinds, as above
            raise WeightsError(f"model={self._model!r}: {name} could not be downloaded: {error}") from error


class _ReportingFile:
    """A file that is appended to and reports its size after each write."""

    def __init__(self, path: Path, report: Callable[[int], None]) -> None:
        self._file, self._report = path.open("ab"), report
        self.truncate, self.seek, self.tell = self._file.truncate, self._file.seek, self._file.tell

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._report(self._file.tell())
        return written

    def __enter__(self) -> "_ReportingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
