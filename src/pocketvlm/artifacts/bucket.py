"""The bucket that `POCKETVLM_STORE` names: waited for, made, or only looked at."""

from __future__ import annotations

from collections.abc import Callable

from pocketvlm.artifacts.open import open_s3, open_store
from pocketvlm.environment import Environment
from pocketvlm.errors import StoreUnavailable, UserError


def make_bucket(environment: Environment, deadline_s: float, say: Callable[[str], None]) -> str:
    """Makes the bucket unless it is there, and proves that it can be used; returns a line that says so. Idempotent.

    Waits `deadline_s` for the store, then raises StoreUnavailable. Raises UserError for a store that is a folder, for keys
    that are refused, and for a store without conditional writes.
    """
    store = open_s3(environment, deadline_s)
    say(f"waiting for {store.place}, at most {deadline_s:g} s")
    made = store.make_bucket()
    store.probe()
    return f"{store.place}: the bucket {'is made' if made else 'was there'}, conditional writes are honoured"


def check_bucket(environment: Environment, deadline_s: float, say: Callable[[str], None]) -> str:
    """Makes nothing. Raises UserError when the store does not answer within `deadline_s`, or cannot be used as it is."""
    say(f"checking {environment.store}, for at most {deadline_s:g} s")
    try:
        open_store(environment, deadline_s=deadline_s)
    except StoreUnavailable as error:
        raise UserError(str(error)) from error
    return f"{environment.store} answers, is there, and honours conditional writes"
