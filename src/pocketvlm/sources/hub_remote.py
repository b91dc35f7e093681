"""A dataset on the Hugging Face Hub at its commit: its files, its card, and ranges of its files' bytes.

Ranges are asked of the Hub's own address of a file, with its client's retries. Nothing is written to disk.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

from pocketvlm.environment import Environment
from pocketvlm.errors import HubUnavailable, UserError
from pocketvlm.hub_errors import hub_errors, hub_token
from pocketvlm.sources.record import MAX_FILE_BYTES, Problem

PAGE = "https://huggingface.co/datasets"
CARD = "README.md"
CARD_BYTES = 2_000_000
"""A larger card is not read."""


class RemoteDataset:
    """One dataset at one commit. Methods raise UserError when a person must act, HubUnavailable when another try may do."""

    def __init__(self, name: str, revision: str, environment: Environment) -> None:
        self.name = name
        self.revision = revision
        self.token = hub_token(environment)
        self._environment = environment
        self._sizes: dict[str, int] | None = None

    def errors(self, file: str = "") -> AbstractContextManager[None]:
        """Turns what the Hub's libraries raise into our family."""
        what = f"run.labeller.source.dataset: {self.name} at {self.revision}{f', {file},' if file else ''}"
        return hub_errors(what, "Parquet files here with path", self._environment.cache)

    def sizes(self) -> dict[str, int]:
        """Bytes of all files by name."""
        if self._sizes is None:
            try:
                from huggingface_hub import HfApi
                from huggingface_hub.hf_api import RepoFile
            except ImportError as error:
                raise UserError("run.labeller.source.kind: hub needs the Hub's client, which is not installed; "
                                "pip install 'pocketvlm[hub]'") from error
            with self.errors():
                tree = HfApi(token=self.token).list_repo_tree(
                    self.name, recursive=True, revision=self.revision, repo_type="dataset"
                )
                self._sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
        return self._sizes

    def card(self) -> Mapping[str, Any]:
        """The data at the head of the dataset's card; empty where it has none, or none that can be read."""
        if not 0 < self.sizes().get(CARD, 0) <= CARD_BYTES:
            return {}
        from huggingface_hub import repocard

        text = self.read(CARD)
        try:
            card = repocard.RepoCard(text.decode("utf-8", "replace"), ignore_metadata_errors=True)
            return dict(card.data.to_dict())  # type: ignore[no-untyped-call]
        except (repocard.yaml.YAMLError, ValueError, TypeError, RecursionError):  # type: ignore[attr-defined]
            return {}  # people write cards by hand; the data do not need them

    def open(self, file: str) -> RangeFile:
        """A file, opened for reading at any place; nothing is asked yet."""
        return RangeFile(self, file, self.sizes()[file])

    def read(self, file: str) -> bytes:
        """A whole file."""
        return self._range(file, 0, self.sizes()[file])

    def image(self, file: str) -> bytes | Problem:
        """A whole file of the dataset, or why it is not read: whoever wrote the name is not trusted."""
        size = self.sizes().get(file)
        if size is None:
            where = "is somewhere else than in the dataset" if "://" in file else "is no file of the dataset"
            return Problem("missing_file", f"{file[:200]} {where}")
        if size > MAX_FILE_BYTES:
            return Problem("too_many_bytes", f"{size} bytes; at most {MAX_FILE_BYTES} are read")
        return self.read(file)

    def page(self, file: str | None = None) -> str:
        """Where a person sees it."""
        return f"{PAGE}/{self.name}/{f'blob/{self.revision}/{quote(file)}' if file else f'tree/{self.revision}'}"

    def _range(self, file: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file."""
        if stop <= start:
            return b""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        url = hf_hub_url(self.name, file, repo_type="dataset", revision=self.revision)
        # Without `identity` a server may pack the bytes, and then a range is one of the packed ones.
        wanted = {"range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
        headers = build_hf_headers(token=self.token, headers=wanted)
        with self.errors(file):
            response = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
        data = response.content
        if response.status_code == 200:  # a server may send all of a small file whatever was asked for
            data = data[start:stop]
        if len(data) != stop - start:
            raise HubUnavailable(f"run.labeller.source.dataset: {self.name} at {self.revision}, {file}: the server sent "
                                 f"{len(data)} bytes for {start} to {stop}; run again, or name Parquet files here with path")
        return data


class RangeFile(io.RawIOBase):
    """A remote file for pyarrow: each read is one request."""

    def __init__(self, dataset: RemoteDataset, name: str, size: int) -> None:
        self._dataset = dataset
        self._name = name
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._at + size, self._size)
        data = self._dataset._range(self._name, self._at, stop)
        self._at += len(data)
        return data
