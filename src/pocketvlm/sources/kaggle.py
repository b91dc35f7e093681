"""A Kaggle dataset of class folders: downloaded once by Kaggle's own client, then read like any other archive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pocketvlm.errors import CredentialsError, DataError, PocketVLMError, RunFileError, SourceUnavailable, UserError
from pocketvlm.run_file.source import ArchiveSource, KaggleSource
from pocketvlm.sources.archive import Archive
from pocketvlm.sources.record import Context, Record, SourceReader
from pocketvlm.sources.web.download import locked

if TYPE_CHECKING:
    from kagglesdk.kaggle_http_client import KaggleHttpClient  # type: ignore[import-untyped]
    from requests import Response

FOLDER = "kaggle"
"""In the cache."""
SILENCE_S = 60.0
CHUNK_BYTES = 1_000_000
VARIABLES = "set KAGGLE_USERNAME and KAGGLE_KEY, or KAGGLE_USERNAME_FILE and KAGGLE_KEY_FILE"

Connect = Callable[[str, str], "KaggleHttpClient"]
"""User and key -> the client's connection."""


class Kaggle(SourceReader):
    """The download waits until the first record, or their number, is asked for."""

    def __init__(self, source: KaggleSource, context: Context, *, connect: Connect | None = None) -> None:
        self._source, self._context = source, context
        self._connect = connect or _official

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self._source.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._archive)

    def records(self, places: range) -> Iterator[Record]:
        return self._archive.records(places)

    @cached_property
    def _archive(self) -> Archive:
        """Raises as `Archive`, and as `_download`."""
        source = self._source
        path = self._context.environment.cache.absolute() / FOLDER / source.dataset / f"{source.version}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.part")) as part:  # a second process waits, and finds it
            if path.is_file():
                Path(part.name).unlink()
            else:
                self._download(part, path)
        archive = ArchiveSource(kind="archive", path=str(path), inside=source.inside, class_folders=source.class_folders,
                                licence=source.licence)  # fmt: skip
        try:
            return Archive(archive, self._context, named=f"{source.dataset} version {source.version}", key="dataset")
        except DataError as error:
            raise DataError(f"{error}; it lies at {path}, delete it to download it again") from error

    def _download(self, part: IO[bytes], path: Path) -> None:
        """Raises CredentialsError, RunFileError for a dataset that is not there, SourceUnavailable."""
        user, key = self._context.environment.kaggle_user, self._context.environment.kaggle_key
        if not user or not key:
            raise CredentialsError(f"run.labeller.source: {self._source.dataset} is downloaded from Kaggle, and there are no "
                                   f"credentials for it; {VARIABLES}")  # fmt: skip
        self._context.progress.line(f"downloading {self._source.dataset} version {self._source.version} from Kaggle to {path}, "
                                    "once for all runs")
        try:
            from kagglesdk.datasets.services.dataset_api_service import DatasetApiClient  # type: ignore[import-untyped]
            from kagglesdk.datasets.types.dataset_api_service import ApiDownloadDatasetRequest  # type: ignore[import-untyped]
            from requests import RequestException
        except ImportError as error:
            raise UserError("run.labeller.source.kind: kaggle needs Kaggle's client, which is not installed; "
                            "pip install 'pocketvlm[kaggle]'") from error
        request = ApiDownloadDatasetRequest()
        request.owner_slug, request.dataset_slug = self._source.dataset.split("/")
        request.dataset_version_number = self._source.version
        try:
            with (
                self._connect(user, key.get_secret_value()) as client,
                DatasetApiClient(client).download_dataset(request) as body,
            ):
                self._save(body, part)
        except RequestException as error:
            raise self._explained(error) from error
        Path(part.name).replace(path)

    def _save(self, body: Response, part: IO[bytes]) -> None:
        """Raises SourceUnavailable for fewer bytes than were announced."""
        part.truncate(0)
        total = 0
        for chunk in body.iter_content(CHUNK_BYTES):
            part.write(chunk)
            total += len(chunk)
        part.flush()
        announced = body.headers.get("Content-Length", "") if "Content-Encoding" not in body.headers else ""
        if announced and total != int(announced):
            raise SourceUnavailable(f"{self._source.dataset}: {total} of {announced} bytes came from Kaggle; run again")
        part.seek(0)
        if part.read(2) != b"PK":
            raise DataError(f"run.labeller.source.dataset: what Kaggle sent for {self._source.dataset} is no zip; run again")

    def _explained(self, error: OSError) -> PocketVLMError:
        response: Response | None = getattr(error, "response", None)
        status = response.status_code if response is not None else None
        what = f"run.labeller.source.dataset: {self._source.dataset} version {self._source.version}"
        said = " ".join(str(error).split())[:200]
        if status in (401, 403):
            return CredentialsError(f"{what}: Kaggle refuses these credentials ({said}); {VARIABLES} to those of a user who may "
                                    "see the dataset")
        if status in (400, 404):
            return RunFileError(f"{what}: Kaggle has no such dataset or version ({said}); check dataset and version")
        return SourceUnavailable(f"{what}: cannot be downloaded from Kaggle ({said}); check the network, then run again")


def _official(user: str, key: str) -> KaggleHttpClient:
    """The part of Kaggle's client that `import kaggle` builds on: that import reads the environment, makes a folder in the home
    folder and asks the server, all before anybody called it."""
    from kagglesdk.kaggle_env import KaggleEnv  # type: ignore[import-untyped]
    from kagglesdk.kaggle_http_client import KaggleHttpClient

    return patient(KaggleHttpClient(KaggleEnv.PROD, username=user, password=key, user_agent="pocketvlm"), user, key)


def patient(client: KaggleHttpClient, user: str, key: str) -> KaggleHttpClient:
    """Gives the client's session a limit to silence, which it has not, and exactly these credentials: it would prefer a token
    that it finds in the environment or in the home folder."""
    from requests.adapters import HTTPAdapter

    class Impatient(HTTPAdapter):
        def send(self, *arguments: object, **options: object) -> Response:
            return super().send(*arguments, **{**options, "timeout": SILENCE_S})  # type: ignore[arg-type]

    with client:
        pass
    session = client._session
    session.auth = (user, key)
    for scheme in ("https://", "http://"):
        session.mount(scheme, Impatient())
    return client
