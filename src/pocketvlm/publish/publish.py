"""`pocketvlm publish`: shows what would go to the Hub, or brings it there. Done again, it goes on, or does nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from typing import get_args

from pocketvlm.artifacts.store import Store
from pocketvlm.environment import Environment
from pocketvlm.errors import CredentialsError, DataError, UserError
from pocketvlm.hub_errors import hub_token
from pocketvlm.publish.card import UNKNOWN
from pocketvlm.publish.files import Repository
from pocketvlm.publish.hub import Hub, Remote, changes
from pocketvlm.publish.leaks import Known, leaks
from pocketvlm.publish.licences import reasons
from pocketvlm.publish.origin import trace
from pocketvlm.publish.prepare import PARTS, Part, Prepared, Wanted, prepare
from pocketvlm.run_file import is_hub_shaped

TARGET = re.compile(r"hub:([\w.-]+/[\w.-]{1,90})")
LEAKS_SHOWN = 20


def publish(
    store: Store,
    environment: Environment,
    name: str,
    to: str,
    *,
    version: str | None = None,
    parts: Sequence[str] = PARTS,
    private: bool = False,
    licence: str | None = None,
    non_commercial: bool = False,
    yes: bool = False,
    endpoint: str | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Publishes a release (version None: the latest) to `hub:owner/name`; without `yes` only says what would be done.

    Returns what a person should read at the end. `licence` is the Hub's id of the model's licence; None: that of its base.
    Raises UserError, CredentialsError, HubUnavailable; DataError for what would leak, or if the licences allow nothing of it.
    """
    target, chosen = _target(to), _parts(parts)
    hub = Hub(hub_token(environment), endpoint)
    if yes and not hub.has_token:
        raise CredentialsError("HF_TOKEN: is not set; set it (or HF_TOKEN_FILE) to a token that may write to "
                               f"{target.partition('/')[0]}'s repositories on the Hub")
    origin = trace(store, name, version)
    release = origin.release
    if licence is None and is_hub_shaped(release.base):
        licence = hub.licence_of(release.base, release.revision)
    wanted = Wanted(target, chosen, licence or UNKNOWN, non_commercial)
    folder = environment.scratch / "publish" / f"{release.name}-{release.version}"
    prepared = prepare(store, origin, wanted, folder)
    if not prepared.repositories:
        assert prepared.decision is not None, "no repository is left only when the dataset alone was asked for"
        raise DataError(f"the dataset of {release.name} may not be published: {'; '.join(reasons(prepared.decision))}")
    _refuse_leaks(prepared, environment)
    remotes = [hub.look(repository) for repository in prepared.repositories]
    _refuse_other_visibility(prepared.repositories, remotes, private)
    if not yes:
        return _plan(prepared, remotes, wanted, private)
    lines = []
    for repository, remote in zip(prepared.repositories, remotes, strict=True):
        message = f"Release {release.name} {release.version}"
        done = remote is not None and changes(repository, remote) == ([], [])
        commit = hub.bring(repository, remote, message, private=private, say=say)
        lines.append(f"{repository.kind_and_id}: {'already there' if done else 'published'}, commit {commit[:12]}")
    shutil.rmtree(folder, ignore_errors=True)
    return "\n".join([*_licence_lines(prepared), *lines])


def _target(to: str) -> str:
    match = TARGET.fullmatch(to)
    if not match:
        raise UserError(f"--to {to}: name a repository of the Hugging Face Hub as hub:owner/name")
    return match[1]


def _parts(parts: Sequence[str]) -> tuple[Part, ...]:
    unknown = [part for part in parts if part not in get_args(Part)]
    if unknown or not parts:
        raise UserError(f"--parts {','.join(parts)}: {', '.join(unknown) or 'nothing'} is no part; choose of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)


def _refuse_leaks(prepared: Prepared, environment: Environment) -> None:
    found = leaks([file for repository in prepared.repositories for file in repository.files], Known.of(environment))
    if found:
        more = [f"and {len(found) - LEAKS_SHOWN} more"] if len(found) > LEAKS_SHOWN else []
        lines = "\n  ".join([*found[:LEAKS_SHOWN], *more])
        raise DataError(f"nothing was sent, because this must not be published:\n  {lines}\n"
                        "correct the run file or the data and release again, or leave that part out with --parts")


def _refuse_other_visibility(repositories: Sequence[Repository], remotes: Sequence[Remote | None], private: bool) -> None:
    for repository, remote in zip(repositories, remotes, strict=True):
        if private and remote is not None and not remote.private:
            raise UserError(f"--private: the {repository.kind_and_id} is there and public; make it private in its settings "
                            "on the Hub first, or choose another name")


def _plan(prepared: Prepared, remotes: Sequence[Remote | None], wanted: Wanted, private: bool) -> str:
    release = prepared.release
    lines = [f"release {release.name} {release.version}, run {release.run}", f"licence of the model: {wanted.licence}"
             + ("; --licence ID states one" if wanted.licence == UNKNOWN else ""), *_licence_lines(prepared)]  # fmt: skip
    for repository, remote in zip(prepared.repositories, remotes, strict=True):
        missing, stale = changes(repository, remote)
        new = f"would be created, {'private' if private else 'public'}"
        state = new if remote is None else f"is there at {remote.commit[:12]}"
        lines += ["", f"{repository.kind_and_id} {state}: {len(repository.files)} files, {repository.size_bytes / 1e6:.2f} MB"]
        lines += [f"  {'upload' if file in missing else 'there '}  {file.size:>13,}  {file.name}" for file in repository.files]
        lines += [f"  remove                 {name}" for name in stale]
    if prepared.card:
        lines += ["", f"README.md of {wanted.to}:", *(f"  | {line}".rstrip() for line in prepared.card.splitlines())]
    return "\n".join([*lines, "", "dry run: nothing was sent; the same command with --yes uploads"])


def _licence_lines(prepared: Prepared) -> list[str]:
    lines = []
    if prepared.decision:
        verdict = "goes with it" if prepared.decision.allowed else "stays here"
        lines = [f"the dataset {verdict}:", *(f"  {line}" for line in prepared.decision.lines)]
    if prepared.golden_left_out:
        lines.append(f"{prepared.golden_left_out} golden images stay here, because of their licence")
    return lines
