"""What is fetched of a pinned repository on the Hugging Face Hub, and who must act when that fails."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pocketvlm.environment import Environment
from pocketvlm.errors import HubUnavailable, PocketVLMError, UserError
from pocketvlm.run_file import Student

FOLDER = "hub"
"""In the cache. The Hub's own default, below the home folder, is read-only in a pod."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_NEEDS_A_PERSON = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def fetch_snapshot(student: Student, patterns: Sequence[str], environment: Environment) -> Path:
    """The folder with the repository's files of these patterns; those that are there already are kept.

    Raises HubUnavailable when another try may succeed, else UserError.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(student, environment):
        return Path(snapshot_download(
            student.model, revision=student.revision, allow_patterns=list(patterns), token=_token(environment),
            cache_dir=environment.cache / FOLDER,
        ))  # fmt: skip


def weight_files(snapshot: Path) -> list[str]:
    """Names of the repository's files of weights, by the index in its snapshot if it has one."""
    index = snapshot / INDEX
    return sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [SINGLE]


def fetch_shapes(student: Student, names: Sequence[str], environment: Environment) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in these files by tensor name; only their headers are fetched. Raises as `fetch_snapshot`."""
    from huggingface_hub import HfApi

    api = HfApi(token=_token(environment))
    shapes: dict[str, tuple[int, ...]] = {}
    with hub_errors(student, environment):
        for name in names:
            header = api.parse_safetensors_file_metadata(student.model, name, revision=student.revision)
            shapes |= {tensor: tuple(info.shape) for tensor, info in header.tensors.items()}
    return shapes


@contextmanager
def hub_errors(student: Student, environment: Environment) -> Iterator[None]:
    """Turns what the Hub's client raises into our family: HubUnavailable when another try may succeed, else UserError."""
    # HTTPError is the base of what its HTTP library raises, whichever that is (httpx, httpx2).
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
        XetDownloadError,
    )

    try:
        yield
    except (HTTPError, OSError, NotASafetensorsRepoError, SafetensorsParsingError, XetDownloadError) as error:
        raise _explain(error, student, environment) from error


def _explain(error: BaseException, student: Student, environment: Environment) -> PocketVLMError:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        OfflineModeIsEnabled,
        SafetensorsParsingError,
    )

    # The client says "not in the cache" of whatever kept it from the Hub: a refusal as well as a lost connection.
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    what = f"run.student.model: {student.model} at {student.revision} cannot be fetched ({said})"
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{what}; HF_HUB_OFFLINE forbids it: unset it, or name a local folder")
    passing = status is None or status in (408, 429) or status >= 500
    if not passing or isinstance(error, NotASafetensorsRepoError | SafetensorsParsingError):
        return UserError(f"{what}; check the name, the revision and HF_TOKEN, or name a local folder")
    if isinstance(error, OSError) and error.errno in _NEEDS_A_PERSON:
        return UserError(f"{what}; set POCKETVLM_CACHE to a folder where this user may write, now {environment.cache}")
    return HubUnavailable(f"{what}; check the network, then run again, or name a local folder")


def _token(environment: Environment) -> str | None:
    return environment.hub_token.get_secret_value() if environment.hub_token else None
