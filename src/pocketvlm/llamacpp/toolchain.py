"""The built llama.cpp: where its programs are, and running one of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pocketvlm.environment import Environment
from pocketvlm.errors import ToolError, UserError
from pocketvlm.llamacpp.build import default_home, is_built, read_pin
from pocketvlm.llamacpp.child import ends_with_us


@dataclass(frozen=True)
class Toolchain:
    """A complete build of the pinned llama.cpp."""

    home: Path

    @property
    def commit(self) -> str:
        """The llama.cpp commit, 40 hex digits."""
        return read_pin().commit

    def program(self, name: str) -> Path:
        """Path of a program."""
        return self.home / "bin" / name

    def run(self, name: str, arguments: Sequence[str]) -> str:
        """Runs a program to its end and returns what it printed. Raises ToolError with its last lines."""
        return _run([str(self.program(name)), *arguments], name)

    def convert(self, checkpoint: Path, *, text: Path, text_type: str, mmproj: Path, mmproj_type: str) -> str:
        """Converts a checkpoint folder to its pair of GGUF files. Raises ToolError with the converter's last lines."""
        runner = Path(__file__).with_name("convert_runner.py")
        files = [str(checkpoint), str(text), text_type, str(mmproj), mmproj_type]
        return _run([sys.executable, str(runner), str(self.home), *files], "convert_hf_to_gguf.py")

    def gguf(self) -> ModuleType:
        """The gguf module of the same commit."""
        path = str(self.home / "gguf-py")
        if path not in sys.path:
            sys.path.insert(0, path)
        return importlib.import_module("gguf")


def _run(command: list[str], name: str) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", preexec_fn=ends_with_us()
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise ToolError(f"{name} failed with exit code {done.returncode}; its last lines:\n{tail}")
    return done.stdout


def find_toolchain(environment: Environment) -> Toolchain:
    """The build at LLAMA_CPP_HOME or in the cache folder. Raises UserError when there is none of the pinned commit."""
    home = environment.llama_cpp_home or default_home(environment.cache)
    if not is_built(home):
        raise UserError(
            f"{home}: no build of llama.cpp {read_pin().commit[:9]}; run `make llama-cpp`, or point LLAMA_CPP_HOME at one"
        )
    return Toolchain(home)
