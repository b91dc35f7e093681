"""Opens the store that the environment names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError

if TYPE_CHECKING:
    from pocketvlm.artifacts.s3 import S3Store


def open_store(environment: Environment, *, read_only: bool = False, deadline_s: float | None = None) -> Store:
    """The store that `POCKETVLM_STORE` names, probed once; `read_only` skips the probe, which has to write.

    `deadline_s` bounds each request to an S3 store; default: S3Store's own. Raises UserError for a store that cannot be
    used, StoreUnavailable if it does not answer.
    """
    store = open_s3(environment, deadline_s) if _is_s3(environment) else _folder(environment)
    if not read_only:
        store.probe()
    return store


def open_s3(environment: Environment, deadline_s: float | None = None) -> S3Store:
    """The S3 store that `POCKETVLM_STORE` names; nothing is sent yet. Raises UserError if it names none."""
    if not _is_s3(environment):
        raise UserError(f"POCKETVLM_STORE={environment.store}: is a folder and has no bucket; name s3://bucket/prefix")
    # Imported here: boto3 takes 0.3 s, and a folder store does not need it.
    from pocketvlm.artifacts.s3 import S3Store

    options: dict[str, Any] = {} if deadline_s is None else {"deadline_s": deadline_s}
    return S3Store(
        environment.store,
        endpoint_url=environment.endpoint_url,
        region=environment.region,
        access_key_id=environment.access_key_id,
        secret_access_key=environment.secret_access_key,
        session_token=environment.session_token,
        **options,
    )


def _is_s3(environment: Environment) -> bool:
    return environment.store.startswith("s3://")


def _folder(environment: Environment) -> Store:
    from pocketvlm.artifacts.folder import FolderStore

    return FolderStore(Path(environment.store))
