"""What the documentation says is true of this tree: generated pages, links, commands, tables, and the script for CI."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pocketvlm import errors
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.artifacts.manifest import FileEntry
from pocketvlm.artifacts.release import Latest, Release, ReleasedType, ReleaseFile, publish_release
from pocketvlm.cli import build_parser
from pocketvlm.environment import Environment
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.student.families import FAMILIES, REFUSED

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "pocketvlm"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
ADRS = sorted((ROOT / "docs" / "adr").glob("0*.md"))


def page(name: str) -> str:
    return (ROOT / name).read_text()


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["run-file.md", "chart.md", "families.md", "values.yaml", "values.schema.json"])
def test_what_is_generated_is_what_the_models_say(name: str) -> None:
    files = {path.name: (path, text) for path, text in generator().files().items()}
    path, text = files[name]
    assert path.read_text() == text, "run `make docs`"


def test_what_is_measured_of_the_families_is_of_this_pin_and_of_all_of_them() -> None:
    record = json.loads(page("docs/families.json"))
    assert record["llama_cpp"] == read_pin().commit, "run `python -m bench.families --write`"
    assert set(record["families"]) == {family.name for family in FAMILIES.values()}
    assert all(architecture in page("docs/families.md") for architecture in [*FAMILIES, *REFUSED])


def test_everything_that_is_generated_is_compared() -> None:
    assert len(generator().files()) == 5


@pytest.mark.parametrize("name", ["docs/run-file.md", "docs/chart.md"])
def test_every_key_has_a_meaning(name: str) -> None:
    rows = re.findall(r"^\| `\w+` \|.*\| (.*) \|$", page(name), re.MULTILINE)
    assert len(rows) > 60
    assert all(meaning.strip() for meaning in rows)


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", path.read_text())):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_commands_and_targets_exist(path: Path) -> None:
    text = path.read_text()
    listed = re.findall(r"^    (\w+) ", build_parser().format_help(), re.MULTILINE)
    for command in re.findall(r"(?<![/\w])(?<!from )pocketvlm (?:--store URL )?([a-z]+)\b", text):
        assert command in listed
    targets = re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE)
    for code in re.findall(r"`[^`\n]+`|^[a-z].*$", "\n".join(code_of(text)), re.MULTILINE):
        for target in re.findall(r"\bmake ([a-z-]+)", code):
            assert target in targets


def code_of(text: str) -> Iterator[str]:
    """Code blocks and inline code of a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from blocks
    yield from re.findall(r"`[^`\n]+`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_run_files_and_modules_that_are_named_exist(path: Path) -> None:
    text = "\n".join(code_of(path.read_text()))
    for name in re.findall(r"\bjobs/[\w-]+\.yaml", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"(?<![\w./])(?:artifacts|sources|student|stages|llamacpp|report)/\w+\.\w+", text):
        assert (SOURCE / name).is_file(), name


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_pages_name_no_machine_and_no_registry_host(path: Path) -> None:
    assert not re.search(r"/home/|/root/|/work/|pypi\.org|pythonhosted|proxy\.golang", path.read_text())


def test_the_tree_of_rooms_is_the_tree() -> None:
    block = next(block for block in code_of(page("README.md")) if "src/pocketvlm/\n" in block)
    rooms = dict(re.findall(r"^  (\S+) +(\S.*)$", block, re.MULTILINE))
    there = {path.name + ("/" if path.is_dir() else "") for path in SOURCE.iterdir()}
    assert set(rooms) == there - {"__init__.py", "__pycache__/", "py.typed"}
    for name in re.findall(r"^(\S+) ", block, re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_the_exit_codes_are_those_of_the_error_family() -> None:
    codes = {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
    rows = re.findall(r"^\| (\d+) \|", page("docs/architecture.md"), re.MULTILINE)
    assert {int(row) for row in rows} == (codes - {1}) | {0}


def test_the_drawn_error_family_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    column: dict[int, str] = {0: "Exception"}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([ │├└─]*)([A-Z]\w+)", line)
        if found and found[2] in vars(errors):
            depth = len(found[1]) // 4 + 1
            drawn[found[2]] = column[depth - 1]
            column[depth] = found[2]
    real = {name: error.__base__.__name__ for name, error in vars(errors).items() if isinstance(error, type)}
    assert drawn == real


def test_every_variable_of_the_environment_is_explained() -> None:
    for field in Environment.model_fields.values():
        assert f"`{field.validation_alias}`" in page("docs/store.md")


@pytest.mark.parametrize(("model", "heading"), [(Release, "release.json"), (Latest, "latest.json")])
def test_every_key_of_a_release_is_explained(model: type, heading: str) -> None:
    section = page("docs/release.md").split(f"## `{heading}`")[1].split("\n## ")[0]
    for key in model.model_fields:  # type: ignore[attr-defined]
        assert f"`{key}`" in section, key


@pytest.mark.parametrize("path", ADRS, ids=ids)
def test_a_decision_has_context_decision_and_consequences(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^#+ .*$", text, re.MULTILINE)[1:] == ["## Context", "## Decision", "## Consequences"]
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert path.name in page("docs/adr/README.md")


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))


def test_the_licence_is_apache_2() -> None:
    assert "Apache License" in page("LICENSE") and "END OF TERMS AND CONDITIONS" in page("LICENSE")


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The folder of a store with one release."""
    folder = tmp_path / "files"
    contents = {
        "text-q8_0.gguf": b"text" * 1000, "mmproj-q8_0.gguf": b"vision" * 500, "prompt.txt": b"a prompt",
        "golden/3 of nine.png": b"a picture",
    }  # fmt: skip
    roles = {"text-q8_0.gguf": "text_model", "mmproj-q8_0.gguf": "mmproj", "prompt.txt": "prompt"}
    files = []
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        entry = FileEntry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        files.append(ReleaseFile.model_validate({**entry.model_dump(), "role": roles.get(name, "golden")}))
    release = Release(
        name="digits", run="digits-01234567", family="SmolVLM", base="tiny", device={"canvas_px": 32}, prompt_tokens=30,
        classes=["zero", "one"], sampling={"temperature": 0.0}, answer_threshold=0.5, llama_cpp="0" * 40,
        types={"q8_0": ReleasedType(text_model="text-q8_0.gguf", mmproj="mmproj-q8_0.gguf", accuracy=0.97)}, files=files,
    )  # fmt: skip
    publish_release(FolderStore(tmp_path / "store"), release, folder)
    return tmp_path / "store"


@pytest.fixture
def served(released: Path) -> Iterator[str]:
    """URL of the store, on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(released)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(tmp_path: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Runs the README's script as an Android CI would."""
    for tool in ("curl", "sha256sum"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH")
    script = tmp_path / "fetch-release.sh"
    script.write_text(next(block for block in code_of(page("README.md")) if "fetch-release.sh" in block))
    command = ["sh", str(script), url, "digits", str(tmp_path / "to")]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin:/usr/local/bin"})


def test_the_script_of_the_readme_fetches_a_release(tmp_path: Path, served: str) -> None:
    done = fetch(tmp_path, served)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "to" / "text-q8_0.gguf").read_bytes() == b"text" * 1000
    assert (tmp_path / "to" / "golden" / "3 of nine.png").read_bytes() == b"a picture"


def test_the_script_repairs_what_is_wrong_and_keeps_what_is_right(tmp_path: Path, served: str) -> None:
    fetch(tmp_path, served)
    right, wrong = tmp_path / "to" / "prompt.txt", tmp_path / "to" / "text-q8_0.gguf"
    before = right.stat().st_mtime_ns
    wrong.write_bytes(b"half")
    assert fetch(tmp_path, served).returncode == 0
    assert wrong.read_bytes() == b"text" * 1000
    assert right.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["text-q8_0.gguf", "release.json"])
def test_the_script_fails_at_a_changed_byte(tmp_path: Path, served: str, released: Path, name: str) -> None:
    (path,) = released.glob(f"releases/digits/*/{name}")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")
    assert fetch(tmp_path, served).returncode != 0


def test_the_script_fails_at_a_list_that_is_not_the_releases_own(tmp_path: Path, served: str, released: Path) -> None:
    (path,) = released.glob("releases/digits/*/SHA256SUMS")
    path.chmod(0o644)
    (path.parent / "added").write_bytes(b"x")
    (path.parent.parent / "outside").write_bytes(b"x")
    more = "".join(f"{hashlib.sha256(b'x').hexdigest()}  {name}\n" for name in ("added", "../outside"))
    path.write_text(path.read_text() + more)
    assert fetch(tmp_path, served).returncode != 0
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "to" / "added").exists()


def test_the_script_fails_at_a_shortened_list(tmp_path: Path, served: str, released: Path) -> None:
    (path,) = released.glob("releases/digits/*/SHA256SUMS")
    path.chmod(0o644)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert fetch(tmp_path, served).returncode != 0


def test_the_script_fails_without_a_release(tmp_path: Path, served: str, released: Path) -> None:
    shutil.rmtree(released / "releases")
    assert fetch(tmp_path, served).returncode != 0
