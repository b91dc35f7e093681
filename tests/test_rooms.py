"""The rules of the house that a parser can check: who may import whom, who reads the environment, and how long things are.

Rooms are the folders of src/pocketvlm; a module of the root folder is a room of its own.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "pocketvlm"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
STAGES = ("labeller", "trainer", "merger", "quantiser", "evaluator")

MAX_FILE_LINES = 320
"""The house style says about 300."""
MAX_FUNCTION_LINES = 60
"""The house style says about 40; a table of arguments or a parser may be longer."""
OWNERS = {
    "torch": ("student/", "stages/"),
    "transformers": ("student/", "stages/"),
    "peft": ("student/", "stages/"),
    "accelerate": ("student/", "stages/"),
    "tokenizers": ("student/", "stages/"),
    "huggingface_hub": ("student/", "sources/", "publish/", "hub_errors.py"),
    "boto3": ("artifacts/s3",),
    "botocore": ("artifacts/s3",),
    "s3transfer": ("artifacts/s3",),
    "openai": ("teacher/",),
    "urllib3": ("sources/web/wire.py", "cluster/api.py"),
    "kagglesdk": ("sources/kaggle.py",),
    "datasets": ("sources/",),
    "kubernetes": ("cluster/api.py",),
    "gradio": ("demo/",),
    "fastapi": ("demo/serve.py",),
    "starlette": ("demo/serve.py",),
    "uvicorn": ("demo/serve.py",),
    "sklearn": ("sources/digits.py",),
    "prometheus_client": ("metrics.py", "cluster/"),
    "pydantic_settings": ("environment.py",),
    "yaml": ("run_file/reader.py", "artifacts/run_record.py"),  # the second only writes: see the test of readers
}
"""Package -> beginnings of the paths that may import it."""

STRANGERS = {
    "artifacts/": ("stages", "student", "sources", "teacher", "llamacpp", "cluster", "local", "plan", "cli"),
    "sources/": ("stages", "student", "llamacpp", "cluster", "local", "plan", "cli"),
    "student/": ("stages", "sources", "llamacpp", "cluster", "local", "plan", "cli"),
    "teacher/": ("stages", "student", "sources", "llamacpp", "cluster", "local", "plan", "cli"),
    "llamacpp/": ("stages", "student", "sources", "cluster", "local", "plan", "cli"),
    "chart/": ("artifacts", "stages", "student", "sources", "teacher", "llamacpp", "cluster", "local", "plan", "cli"),
    "report/": ("sources", "student", "llamacpp", "cluster", "local", "plan", "cli"),
    "predict/": ("stages", "teacher", "report", "review", "demo", "cluster", "local", "plan", "cli"),
    "demo/": ("stages", "teacher", "report", "review", "cluster", "local", "plan", "cli"),
    "doctor/": ("stages", "sources", "teacher", "cluster", "local", "plan", "cli"),
    "publish/": ("stages", "student", "sources", "teacher", "cluster", "local", "plan", "cli"),
    "compare/": ("stages", "sources", "teacher", "llamacpp", "cluster", "local", "plan", "cli"),
    "review/": ("stages", "student", "sources", "teacher", "llamacpp", "cluster", "local", "plan", "cli"),
    "stages/": ("cluster", "local", "plan", "cli"),
    "cluster/": (
        "artifacts", "sources", "teacher", "student", "stages", "llamacpp", "report", "run_file", "environment", "local", "plan",
        "phone", "verify", "cli",
    ),
    "run_file/": ("artifacts", "stages", "student", "sources", "teacher", "llamacpp", "environment", "cli"),
    "environment.py": ("artifacts", "stages", "student", "sources", "llamacpp", "run_file", "cli"),
    "progress.py": ("artifacts", "stages", "student", "sources", "llamacpp", "run_file", "environment", "cli"),
    "metrics.py": ("artifacts", "stages", "student", "sources", "llamacpp", "run_file", "environment", "progress", "cli"),
    "interrupt.py": ("artifacts", "stages", "student", "sources", "llamacpp", "run_file", "environment", "progress", "cli"),
    "errors.py": ("artifacts", "stages", "student", "sources", "llamacpp", "run_file", "environment", "progress", "cli"),
}
"""Beginning of a path -> rooms of ours that it must not import."""

WORKSHOPS = {"labelling": "labeller", "training": "trainer", "evaluation": "evaluator"}
"""Folder in stages/ -> the stage whose parts lie there; nobody else imports them."""

SETTERS = ("os.putenv", "os.unsetenv", *(f"os.environ.{name}" for name in ("update", "setdefault", "pop", "clear")))

ROOM_USERS = {"cluster": ("cluster/", "cli/")}
"""Room -> beginnings of the paths that may import it."""

HEAVY = ("torch", "transformers", "peft", "accelerate", "sklearn", "datasets", "gradio")
"""Seconds to import. A rerun of a finished run needs none of them."""
LIGHT = [
    *(f"pocketvlm.stages.{name}" for name in STAGES if f"stages/{name}.py" in FILES),
    *(f"pocketvlm.{name}" for name in (
        "cli", "local", "plan", "artifacts", "sources", "teacher", "llamacpp", "report", "review", "doctor", "cluster",
        "predict", "demo", "publish", "compare",
    )),
]
"""Modules, and packages with all their modules, that must not import anything heavy."""


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(), file)


def imports(file: str) -> Iterator[str]:
    """Dotted names of what a file imports, inside functions too; `from a import b` gives `a.b`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def attributes(file: str, module: str) -> set[str]:
    """Names of a module that a file uses, as `module.name` or by `from module import name`."""
    used = {name.removeprefix(f"{module}.") for name in imports(file) if name.startswith(f"{module}.")}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            used.add(node.attr)
    return used


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_is_imported_only_in_its_rooms(package: str) -> None:
    users = [file for file in FILES if any(name.split(".")[0] == package for name in imports(file))]
    assert [file for file in users if not file.startswith(OWNERS[package])] == []


@pytest.mark.parametrize("room", STRANGERS)
def test_a_room_does_not_know_the_rooms_above_it(room: str) -> None:
    found = [
        f"{file} imports {name}"
        for file in FILES
        if file.startswith(room)
        for name in imports(file)
        if name.startswith("pocketvlm.") and name.split(".")[1] in STRANGERS[room]
    ]
    assert found == []


@pytest.mark.parametrize("room", ROOM_USERS)
def test_a_room_is_entered_only_by_its_users(room: str) -> None:
    users = [file for file in FILES for name in imports(file) if name.startswith(f"pocketvlm.{room}.")]
    assert [file for file in users if not file.startswith(ROOM_USERS[room])] == []


def test_no_stage_imports_another() -> None:
    found = [
        f"{file} imports {name}"
        for file in FILES
        if file.startswith("stages/")
        for name in imports(file)
        for stage in STAGES
        if name.startswith(f"pocketvlm.stages.{stage}") and file != f"stages/{stage}.py"
    ]
    assert found == []


@pytest.mark.parametrize("folder", WORKSHOPS)
def test_the_parts_of_a_stage_are_its_own(folder: str) -> None:
    owners = (f"stages/{folder}/", f"stages/{WORKSHOPS[folder]}.py")
    users = [file for file in FILES for name in imports(file) if name.startswith(f"pocketvlm.stages.{folder}.")]
    assert [file for file in users if not file.startswith(owners)] == []


def test_all_five_stages_are_there() -> None:
    assert [stage for stage in STAGES if f"stages/{stage}.py" not in FILES] == []


def test_only_the_run_file_reads_yaml() -> None:
    readers = [file for file in FILES if any("load" in name for name in attributes(file, "yaml"))]
    assert readers == ["run_file/reader.py"]


def test_only_the_environment_reads_the_environment() -> None:
    """llama.cpp's build hands its own environment on to cmake, with one PATH before it, and reads nothing else of it."""
    readers = [file for file in FILES if attributes(file, "os") & {"environ", "environb", "getenv", "getenvb"}]
    assert set(readers) <= {"environment.py", "llamacpp/build.py"}
    named = [
        ast.unparse(node)
        for node in ast.walk(tree("llamacpp/build.py"))
        if isinstance(node, ast.Call | ast.Subscript) and ast.unparse(node).startswith(("os.environ.get(", "os.environ["))
    ]
    assert set(named) <= {"os.environ.get('PATH', '')"}


def test_nothing_sets_the_environment() -> None:
    """But for two switches, of deterministic cuBLAS kernels and of idle OpenMP threads, which take them from nowhere else."""
    found = [
        f"{file}: {ast.unparse(node)}"
        for file in FILES
        for node in ast.walk(tree(file))
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in SETTERS)
        or (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del)
            and ast.unparse(node.value) == "os.environ")
    ]  # fmt: skip
    assert set(found) <= {
        "stages/training/run.py: os.putenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')",
        "environment.py: os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')",
    }


def test_what_a_rerun_needs_is_imported_without_anything_heavy() -> None:
    """A stage may load torch inside a function, not when its module is imported; what it imports in turn counts too."""
    program = f"""
import importlib, pkgutil, sys
for name in {LIGHT!r}:
    before = set(sys.modules)
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, '__path__', []), name + '.'):
        importlib.import_module(found.name)
    heavy = sorted({set(HEAVY)!r} & (set(sys.modules) - before))
    if heavy:
        print(name, 'imports', *heavy)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_files_are_short() -> None:
    lengths = {file: len((SOURCE / file).read_text().splitlines()) for file in FILES}
    assert {file: n for file, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    found = {
        f"{file}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    }
    assert {name: lines for name, lines in found.items() if lines > MAX_FUNCTION_LINES} == {}


def test_nothing_is_swallowed() -> None:
    """A handler of everything that does not raise again hides the fault from who must act.

    The one exception decodes strangers' images: Pillow's plugins raise whatever their parsers raise, and an image that
    cannot be decoded is quarantined with that reason.
    """
    found = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                reraised = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                if broad and not reraised:
                    found.append(f"{file}:{node.lineno}")
    assert [where for where in found if not where.startswith("sources/images.py:")] == []


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    found = [f"{file}: {mark}" for file in FILES for mark in marks if mark in (SOURCE / file).read_text()]
    assert found == []
