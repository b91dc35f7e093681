"""Who must act when the Hugging Face Hub does not give what was asked for, whichever room asked."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketvlm.environment import Environment
from pocketvlm.errors import CredentialsError, HubUnavailable, PocketVLMError, RunFileError, UserError

FOLDER = "hub"
"""In the cache: what the Hub's libraries keep. Their own default, below the home folder, is read-only in a pod."""
_NEEDS_A_PERSON = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextmanager
def hub_errors(what: str, instead: str, cache: Path) -> Iterator[None]:
    """Turns what the Hub's client raises into our family.

    `what` is asked for, led by its key in the run file; `instead` is what a person may name in its place. HubUnavailable
    when another try may succeed; else UserError: CredentialsError for a refusal, RunFileError for what does not exist.
    """
    # HTTPError is the base of what its HTTP library raises, whichever that is (httpx, httpx2).
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HTTPError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
        XetDownloadError,
    )

    try:
        yield
    except PocketVLMError:
        raise
    except (HTTPError, OSError, NotASafetensorsRepoError, SafetensorsParsingError, XetDownloadError) as error:
        raise _explain(error, what, instead, cache) from error


def hub_token(environment: Environment) -> str | None:
    """HF_TOKEN, where there is one."""
    return environment.hub_token.get_secret_value() if environment.hub_token else None


def _explain(error: BaseException, what: str, instead: str, cache: Path) -> PocketVLMError:
    from huggingface_hub.errors import (
        GatedRepoError,
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
    failed = f"{what} cannot be fetched ({said})"
    if isinstance(error, OfflineModeIsEnabled):
        return UserError(f"{failed}; HF_HUB_OFFLINE forbids it: unset it, or name {instead}")
    if isinstance(error, GatedRepoError):
        return CredentialsError(f"{failed}; accept its terms on its page on the Hub, then set HF_TOKEN to a token of that "
                                f"account, or name {instead}")
    passing = status is None or status in (408, 429) or status >= 500
    if not passing or isinstance(error, NotASafetensorsRepoError | SafetensorsParsingError):
        refused = CredentialsError if status in (401, 403) else RunFileError if status == 404 else UserError
        return refused(f"{failed}; check the name, the revision and HF_TOKEN, or name {instead}")
    if isinstance(error, OSError) and error.errno in _NEEDS_A_PERSON:
        return UserError(f"{failed}; set POCKETVLM_CACHE to a folder where this user may write, now {cache}")
    return HubUnavailable(f"{failed}; check the network, then run again, or name {instead}")
