"""The Hub's side: what a repository holds, and bringing it to what it shall hold in one commit.

Large files go first, each under its sha256: the Hub says which of them it has, so what an interrupted upload has finished is
never sent again. Nothing of it is seen until the commit, which names the state that it was decided on and is refused if that has
moved.
Files are handed over as open files, for which the client speaks the Hub's LFS protocol: that one can say what is there by sha256,
and a mirror or a private Hub speaks it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.artifacts.manifest import canonical_json
from pocketvlm.errors import CredentialsError, HubUnavailable, PocketVLMError, UserError
from pocketvlm.publish.files import Repository, Upload

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LISTING = "pocketvlm.json"
"""In each repository: the names of the files that publishing put there, so that the next one can remove what it no longer has."""
ALONE_BYTES = 1_000_000
"""A larger file is uploaded on its own, so that it is there for the next try; the others go together."""
_GONE = (404, 410)


@dataclass(frozen=True)
class Remote:
    """A repository as it is."""

    commit: str
    """Head of its main branch."""
    private: bool
    files: Mapping[str, str]
    """Name -> sha256 of a large file, git's sha1 of a small one."""
    ours: frozenset[str]
    """Names of the files that publishing put there."""

    def has(self, file: Upload) -> bool:
        """Whether it holds these bytes under this name."""
        found = self.files.get(file.name)
        return found is not None and found in (file.sha256, _git_sha1(file) if len(found) == 40 else "")


def _git_sha1(file: Upload) -> str:
    digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with file.path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Hub:
    """One client. Every method raises CredentialsError, UserError or HubUnavailable."""

    def __init__(self, token: str | None, endpoint: str | None = None) -> None:
        """`endpoint` None: HF_ENDPOINT, else the Hub."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import logging
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call] # it warns of every open file; the module's docstring says why they are open
        # False: without a token of the environment it is nobody, and not whoever logged in on this machine once.
        self._api: HfApi = HfApi(endpoint=endpoint, token=token or False)
        self.has_token = token is not None

    def look(self, repository: Repository) -> Remote | None:
        """What is there; None: there is no such repository (or none that we may see)."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with _errors(f"{repository.kind_and_id} cannot be read"):
            try:
                info: Any = self._api.repo_info(repository.id, repo_type=repository.type, files_metadata=True)
            except RepositoryNotFoundError:
                return None
            files = {sibling.rfilename: sibling.lfs.sha256 if sibling.lfs else sibling.blob_id for sibling in info.siblings or ()}
            ours = self._listing(repository, info.sha) if LISTING in files else frozenset()
            return Remote(info.sha, bool(info.private), files, ours)

    def _listing(self, repository: Repository, commit: str) -> frozenset[str]:
        import tempfile

        # In a folder of its own: the client's cache is in the home folder, which may be read-only.
        with tempfile.TemporaryDirectory() as folder:
            path = self._api.hf_hub_download(
                repository.id, LISTING, repo_type=repository.type, revision=commit, local_dir=folder, cache_dir=folder
            )
            names = json.loads(Path(path).read_bytes()).get("files", [])
        return frozenset(str(name) for name in names)

    def licence_of(self, model: str, revision: str | None) -> str | None:
        """The licence that a model's card on the Hub names; None where there is no such model, or it names none."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        with _errors(f"the licence of {model} cannot be read"):
            try:
                tags = self._api.model_info(model, revision=revision).tags or []
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
        return next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)

    def bring(
        self, repository: Repository, remote: Remote | None, message: str, *, private: bool, say: Callable[[str], None]
    ) -> str:
        """Uploads what is missing, makes one commit, returns its id; does nothing if all is there."""
        with _errors(f"{repository.kind_and_id} cannot be written"):
            if remote is None:
                self._api.create_repo(repository.id, repo_type=repository.type, private=private or None, exist_ok=True)
                remote = self.look(repository)
                if remote is None:
                    raise CredentialsError(f"{repository.kind_and_id} was made and cannot be read: give HF_TOKEN that right")
            missing, stale = changes(repository, remote)
            if not missing and not stale:
                return remote.commit
            return self._commit(repository, remote, missing, stale, message, say)

    def _commit(
        self, repository: Repository, remote: Remote, missing: list[Upload], stale: list[str], message: str,
        say: Callable[[str], None],
    ) -> str:  # fmt: skip
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with ExitStack() as stack:
            additions = [CommitOperationAdd(file.name, stack.enter_context(file.path.open("rb"))) for file in missing]
            # Of equal files the first is uploaded, and the commit finds it there for the others: two threads of the client would
            # read one open file.
            first = {file.sha256: place for place, file in reversed(list(enumerate(missing)))}
            together = [additions[place] for place in first.values() if missing[place].size <= ALONE_BYTES]
            for group in ([additions[place]] for place in first.values() if missing[place].size > ALONE_BYTES):
                self._api.preupload_lfs_files(repository.id, group, repo_type=repository.type, free_memory=False)
                say(f"{repository.id}: {group[0].path_in_repo} is there, {group[0].upload_info.size / 1e6:.1f} MB")
            self._api.preupload_lfs_files(repository.id, together, repo_type=repository.type, free_memory=False)
            done = self._api.create_commit(
                repository.id, [*additions, *(CommitOperationDelete(name) for name in stale)], commit_message=message,
                repo_type=repository.type, parent_commit=remote.commit,
            )  # fmt: skip
        return str(done.oid)


def changes(repository: Repository, remote: Remote | None) -> tuple[list[Upload], list[str]]:
    """Files that are to be uploaded, and names that publishing once put there and that go now."""
    if remote is None:
        return list(repository.files), []
    names = {file.name for file in repository.files}
    return [file for file in repository.files if not remote.has(file)], sorted((remote.ours & set(remote.files)) - names)


def listing(files: list[Upload]) -> bytes:
    """Content of LISTING."""
    names = sorted([LISTING, *(file.name for file in files)])
    return canonical_json({"made_by": "pocketvlm publish", "files": names})


@contextmanager
def _errors(failed: str) -> Iterator[None]:
    """Turns what the Hub's client raises into our family."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        yield
    except PocketVLMError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError(f"{failed}: HF_HUB_OFFLINE forbids it; unset it") from error
    except (HTTPError, OSError) as error:
        raise _explain(failed, error) from error
    except (RuntimeError, ValueError) as error:
        # The client wraps what happens to a large file in a RuntimeError, and what an odd server says in a ValueError.
        cause = error.__cause__
        if isinstance(cause, HTTPError | OSError):
            raise _explain(failed, cause) from error
        if isinstance(error, ValueError):
            raise UserError(f"{failed}: {error}; check the names and HF_ENDPOINT") from error
        raise


def _explain(failed: str, error: BaseException) -> PocketVLMError:
    from huggingface_hub.errors import HfHubHTTPError

    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    status: int | None = getattr(response, "status_code", None)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    if status in (401, 403):
        return CredentialsError(f"{failed} ({said}); set HF_TOKEN (or HF_TOKEN_FILE) to a token that may write there")
    if status in (409, 412):
        return HubUnavailable(f"{failed}: somebody else changed it at the same time ({said}); run the same command again")
    if status in _GONE:
        return UserError(f"{failed}: it is not there ({said}); check owner and name in --to, and HF_TOKEN")
    if status is None or status in (408, 429) or status >= 500:
        return HubUnavailable(f"{failed} ({said}); what is uploaded stays: run the same command again")
    return UserError(f"{failed} ({said})")
