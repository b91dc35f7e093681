"""Builds the pinned llama.cpp once for all clones of a user: converter, gguf-py, and three programs.

`python -m pocketvlm.llamacpp.build [--cache FOLDER]` prints the folder of the build. The same script serves the laptop
and the image. The source is the llama.cpp vendored in the sdist that pin.toml names, so the package registry is all
the network that it needs; cmake and ninja are wheels.

GGML_NATIVE is off, so that one build runs on every x86-64 with AVX2 (and every arm64), and AMX stays off: ggml's AMX
path crashes on some virtual machines (shared facts on speed).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import Corrupt, PocketVLMError, ToolError, UserError

PROGRAMS = ("llama-quantize", "llama-server", "llama-mtmd-cli")
SCRIPTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py", "LICENSE")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)
COMPLETE = "build.json"
"""Written last: a folder without it is no build."""


@dataclass(frozen=True)
class Pin:
    """The one source of llama.cpp."""

    package: str
    version: str
    sha256: str
    commit: str

    @property
    def key(self) -> str:
        """Names the build's folder: source and flags."""
        text = json.dumps([self.sha256, PROGRAMS, SCRIPTS, CMAKE_FLAGS])
        return f"{self.commit[:9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_pin() -> Pin:
    """The pin of this package."""
    return Pin(**tomllib.loads(Path(__file__).with_name("pin.toml").read_text()))


def default_home(cache: Path) -> Path:
    """Where the pinned build lies in the user's cache folder."""
    return cache / "llama.cpp" / read_pin().key


def is_built(home: Path) -> bool:
    """Whether `home` holds a complete build of the pin."""
    try:
        return bool(json.loads((home / COMPLETE).read_text())["commit"] == read_pin().commit)
    except (OSError, ValueError, KeyError):
        return False


def build(home: Path) -> Path:
    """Builds into `home` unless it is there; two builders of one home wait for each other.

    Raises UserError for a folder that holds anything else, ToolError, Corrupt.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    with _locked(home.with_suffix(".lock")):
        if is_built(home):
            return home
        if home.exists() and any(home.iterdir()):
            raise UserError(f"{home}: is not a build of llama.cpp {read_pin().commit[:9]} and not empty; nothing there was "
                            "touched. Move it away, or build into another folder")
        print(
            f"building llama.cpp {read_pin().commit[:9]} into {home}: 6 to 8 minutes on two cores, once",
            file=sys.stderr,
            flush=True,
        )
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="building-") as name:
            work = Path(name)
            source = _unpack(_download(work), work)
            _compile(source, work / "build")
            _collect(source, work / "build", work / "home").rename(home)
    return home


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(work: Path) -> Path:
    pin = read_pin()
    requirement = work / "requirement.txt"
    requirement.write_text(f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n")
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
            "--require-hashes",
            "--dest",
            str(work),
            "--requirement",
            str(requirement),
        ]
    )
    sdist = next(work.glob("*.tar.gz"))
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != pin.sha256:
        raise Corrupt(f"{sdist.name}: sha256 is {found}, pin.toml says {pin.sha256}")
    return sdist


def _unpack(sdist: Path, work: Path) -> Path:
    """Regular files below vendor/llama.cpp only. The archive's hash is pinned, and members still may not leave `work`."""
    root = f"{sdist.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
    with tarfile.open(sdist) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(root) and ".." not in Path(member.name).parts:
                target = work / "source" / member.name.removeprefix(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                file = archive.extractfile(member)
                assert file is not None
                with target.open("wb") as out:
                    shutil.copyfileobj(file, out)
                target.chmod(0o755 if member.mode & 0o100 else 0o644)
    sdist.unlink()
    return work / "source"


def _compile(source: Path, folder: Path) -> None:
    commit = read_pin().commit
    _run(
        [
            "cmake",
            "-S",
            str(source),
            "-B",
            str(folder),
            "-G",
            "Ninja",
            f"-DLLAMA_BUILD_COMMIT={commit[:9]}",
            *CMAKE_FLAGS,
        ]
    )
    _run(["cmake", "--build", str(folder), "--target", *PROGRAMS])


def _collect(source: Path, folder: Path, home: Path) -> Path:
    (home / "bin").mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy2(folder / "bin" / program, home / "bin" / program)
    for name in SCRIPTS:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy(source / name, home / name)
    (home / COMPLETE).write_text(json.dumps({"commit": read_pin().commit, "flags": CMAKE_FLAGS}, indent=1) + "\n")
    return home


def _run(command: list[str]) -> None:
    """Runs a build step; its output is shown only when it fails."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PATH": path}
    )
    if done.returncode:
        raise ToolError(f"{' '.join(command[:3])} ... failed with exit code {done.returncode}:\n{done.stdout[-4000:]}")


def _home_of_the_user() -> Path:
    """Imported here: with `--cache` the script needs the standard library alone, as the image that builds has no more."""
    from pocketvlm.environment import read_environment

    environment = read_environment()
    return environment.llama_cpp_home or default_home(environment.cache)


def main() -> int:
    """Prints the folder of the build."""
    parser = argparse.ArgumentParser(description="Build the pinned llama.cpp once into the user's cache folder.")
    parser.add_argument("--cache", type=Path, help="build below this folder; default: LLAMA_CPP_HOME, or the cache of the user")
    arguments = parser.parse_args()
    try:
        print(build(default_home(arguments.cache) if arguments.cache else _home_of_the_user()))
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
