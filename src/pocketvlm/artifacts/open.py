"""Opens the store that the environment names."""

from __future__ import annotations

from pathlib import Path

from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment


def open_store(environment: Environment, *, read_only: bool = False) -> Store:
    """The store that `POCKETVLM_STORE` names, probed once; `read_only` skips the probe, which has to write.

    Raises UserError for a store that cannot be used, StoreUnavailable if it does not answer.
    """
    store = _adapter(environment)
    if not read_only:
        store.probe()
    return store


def _adapter(environment: Environment) -> Store:
    # Imported here: boto3 takes 0.3 s, and a folder store does not need it.
    if environment.store.startswith("s3://"):
        from pocketvlm.artifacts.s3 import S3Store

        return S3Store(
            environment.store,
            endpoint_url=environment.endpoint_url,
            region=environment.region,
            access_key_id=environment.access_key_id,
            secret_access_key=environment.secret_access_key,
            session_token=environment.session_token,
        )
    from pocketvlm.artifacts.folder import FolderStore

    return FolderStore(Path(environment.store))
