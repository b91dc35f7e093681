"""The released digits asked on llama.cpp: by the command and from Python, and what a bad image or a dying server costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pocketvlm import Model, Prediction
from pocketvlm.artifacts.dataset import read_split
from pocketvlm.artifacts.files import hash_file
from pocketvlm.environment import Environment, read_environment
from pocketvlm.errors import Corrupt, DataError, UserError
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.predict.command import predict

from ..conftest import Place

pytestmark = [pytest.mark.llamacpp, pytest.mark.chain]


@pytest.fixture(scope="module")
def environment(digits: Place, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The store of the digits run, and an empty cache."""
    here = read_environment()
    places = {"store": str(digits.folder / "store"), "cache": tmp_path_factory.mktemp("cache")}
    return here.model_copy(update={**places, "llama_cpp_home": find_toolchain(here).home, "threads": 2})


@pytest.fixture(scope="module")
def pulled(digits: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release in a folder, with one type."""
    folder = tmp_path_factory.mktemp("pulled")
    done = digits.pocketvlm("pull", "digits", "--types", "q8_0", "--to", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def tested(digits: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the test images, called by their sha256."""
    folder, dataset = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("dataset")
    artifact = digits.artifact("labeller")
    artifact.fetch(dataset, [entry.name for entry in artifact.files if entry.name.startswith("test-")])
    for example in read_split(dataset, "test"):
        (folder / f"{example.sha256}.png").write_bytes(example.image_png)
    return folder


@pytest.fixture(scope="module")
def model(pulled: Path, environment: Environment) -> Iterator[Model]:
    with Model.open(pulled, environment=environment) as opened:
        yield opened


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def servers() -> set[int]:
    """Process ids of this process' llama-servers."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rpartition(")")[::2]
        except OSError:
            continue
        if "llama-server" in name and int(fields.split()[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


def test_every_test_image_is_answered_as_the_evaluator_measured(
    digits: Place, tested: Path, environment: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    assert predict("digits", [tested], environment, type="q8_0", output=out) == 0
    measured = [json.loads(line) for line in digits.artifact("evaluator").read("predictions.jsonl").decode().splitlines()]
    wanted = {row["sha256"]: row["answers"]["q8_0"] for row in measured}
    rows = lines(out)
    assert len(rows) == 359
    assert [row["image"] for row in rows] == sorted(str(path) for path in tested.iterdir())
    assert {Path(row["image"]).stem: row["best"] for row in rows} == wanted
    assert all(row["ms"] > 0 and 0 < row["confidence"] <= 1 for row in rows)
    said = capsys.readouterr().err
    assert "digits " in said
    assert "359 of 359 images answered" in said


def test_one_bad_image_costs_one_row_and_exit_3(
    pulled: Path, tested: Path, environment: Environment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    good = sorted(tested.iterdir())[:4]
    out = tmp_path / "rows.csv"
    assert predict(str(pulled), [*good[:2], tmp_path / "bad.png", tmp_path / "none.png", *good[2:]], environment, output=out) == 3
    rows = out.read_text().splitlines()
    assert rows[0] == "image,answer,best,confidence,ms,reason,error"
    assert [row.startswith(str(tmp_path)) for row in rows[1:]] == [False, False, True, True, False, False]
    said = capsys.readouterr().err
    assert f"{tmp_path}/bad.png: starts as PNG, but its header cannot be read (damaged)" in said
    assert f"{tmp_path}/none.png: there is no such file (missing_file)" in said


def test_below_the_threshold_the_answer_is_kept_and_not_shown(
    pulled: Path, tested: Path, environment: Environment, tmp_path: Path
) -> None:
    shutil.copytree(pulled, tmp_path / "strict")
    release = json.loads((pulled / "release.json").read_text())
    (tmp_path / "strict" / "release.json").write_text(json.dumps(release | {"answer_threshold": 1.0}))
    image = min(tested.iterdir())
    with Model.open(tmp_path / "strict", environment=environment) as strict:
        row = strict.predict(image)
    assert (row.answer, row.unsure) == (None, True)
    assert row.best in release["classes"]
    assert str(row) == f"? ({row.best})"


def test_fields_are_an_object(pulled: Path, tested: Path, environment: Environment, tmp_path: Path) -> None:
    """The digits asked for JSON: what they say means nothing, its form does."""
    folder = tmp_path / "fields"
    shutil.copytree(pulled, folder)
    release = json.loads((pulled / "release.json").read_text())
    (folder / "grammar.gbnf").write_text('root ::= " {\\"loops\\":" ("0" | "1" | "2") "}"\n')
    for entry in release["files"]:
        if entry["name"] == "grammar.gbnf":
            entry |= hash_file(folder / "grammar.gbnf", "grammar.gbnf").model_dump()
    fields = [{"loops": {"type": "integer", "description": "closed loops", "values": [0, 1, 2]}}]
    task = {"kind": "extract", "fields": fields, "question": 'Answer as {"loops": 1}.'}
    asked = release | {"task": task, "classes": [], "answer_threshold": 0.0, "sampling": {"max_new_tokens": 32}}
    (folder / "release.json").write_text(json.dumps(asked))
    assert predict(str(folder), [min(tested.iterdir())], environment, output=tmp_path / "rows.jsonl") == 0
    (row,) = lines(tmp_path / "rows.jsonl")
    assert row["answer"] == row["best"]
    assert row["answer"]["loops"] in (0, 1, 2)


def test_path_bytes_and_pillow_image_get_one_answer(model: Model, tested: Path) -> None:
    path = min(tested.iterdir())
    with Image.open(path) as image:
        rows = [model.predict(asked) for asked in (path, str(path), path.read_bytes(), image)]
    assert len({(row.answer, row.best, row.confidence) for row in rows}) == 1
    assert [row.image for row in rows] == [str(path), str(path), "image 1", str(path)]
    assert isinstance(rows[0], Prediction)
    assert model.release.name == "digits"


def test_an_image_that_cannot_be_read_is_an_error_of_its_own(model: Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: there is no such file"):
        model.predict(tmp_path / "none.jpg")


def test_a_stream_of_images_is_read_no_further_than_needed(model: Model, tested: Path) -> None:
    paths = sorted(tested.iterdir())
    taken: list[Path] = []

    def images() -> Iterator[Path]:
        for path in paths:
            taken.append(path)
            yield path

    rows = model.predict_many(images())
    assert next(rows).image == str(paths[0])
    rows.close()  # type: ignore[attr-defined]
    assert len(taken) < 20


def test_a_server_that_dies_costs_no_answer(pulled: Path, tested: Path, environment: Environment) -> None:
    paths = sorted(tested.iterdir())[:40]
    with Model.open(pulled, environment=environment) as model:
        undisturbed = [row.best for row in model.predict_many(paths)]
        answers = []
        for number, row in enumerate(model.predict_many(paths)):
            answers.append(row.best)
            if number in (5, 20):
                os.kill(min(servers()), signal.SIGKILL)
    assert answers == undisturbed


def test_ctrl_c_ends_it_at_once_though_every_server_is_answering(digits: Place, pulled: Path, tested: Path) -> None:
    """A terminal sends it to the whole group; a server that got it used to keep its question for ten minutes."""
    command, variables = digits.command("predict", str(pulled), *[str(tested)] * 20)
    variables["LLAMA_CPP_HOME"] = str(find_toolchain(read_environment()).home)
    process = subprocess.Popen(
        command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        try:
            said = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "error: interrupted" in said


def test_close_ends_the_servers(pulled: Path, environment: Environment) -> None:
    before = servers()
    model = Model.open(pulled, environment=environment)
    assert servers() - before
    model.close()
    model.close()
    assert servers() == before


def test_a_name_is_pulled_into_the_cache_and_what_was_pulled_before_stays(environment: Environment) -> None:
    for type in ("q4_0", "q8_0"):
        Model.open("digits", type=type, environment=environment).close()
    (folder,) = {path.parent for path in (environment.cache / "releases").rglob("release.json")}
    assert {"text-q4_0.gguf", "text-q8_0.gguf"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("nothing", {}, "there is no release nothing; there are: digits"),
    ("digits", {"version": "9"}, "digits has no version 9"),
    ("digits", {"type": "q2_k"}, "--type q2_k: release digits .* has iq4_nl, q4_0, q8_0"),
])  # fmt: skip
def test_what_does_not_exist_is_said_with_what_does(environment: Environment, name: str, arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Model.open(name, environment=environment, **arguments)


def test_a_type_that_was_not_pulled_is_refused(pulled: Path, environment: Environment) -> None:
    with pytest.raises(UserError, match=r"--type q4_0: .* holds q8_0"):
        Model.open(pulled, type="q4_0", environment=environment)
    with pytest.raises(UserError, match="has one version"):
        Model.open(pulled, version="1", environment=environment)


def test_a_path_that_leads_to_no_release_is_a_path_and_no_name(environment: Environment, tmp_path: Path) -> None:
    for path, says in ((tmp_path, "has no release.json"), (tmp_path / "nowhere", "there is no such folder")):
        with pytest.raises(UserError, match=f"^{path}: {says}"):
            Model.open(path, environment=environment)


@pytest.mark.parametrize("name", ["text-q8_0.gguf", "mmproj-q8_0.gguf", "prompt.txt", "grammar.gbnf"])
def test_a_changed_file_is_refused_before_anything_is_asked(
    pulled: Path, environment: Environment, tmp_path: Path, name: str
) -> None:
    shutil.copytree(pulled, tmp_path / "changed")
    with (tmp_path / "changed" / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(Corrupt, match=f"{name} does not have its sha256"):
        Model.open(tmp_path / "changed", environment=environment)


def test_the_command_prints_a_row_for_each_image(digits: Place, pulled: Path, tested: Path) -> None:
    images = [str(path) for path in sorted(tested.iterdir())[:3]]
    done = digits.pocketvlm("predict", str(pulled), *images)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == images
    table = digits.pocketvlm("predict", str(pulled), *images, "--format", "table")
    assert table.stdout.splitlines()[0].split() == ["image", "confidence", "ms", "answer"]


def test_rows_that_cannot_be_written_are_a_users_error(
    pulled: Path, tested: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = [min(tested.iterdir())]
    for format in ("jsonl", "csv", "table"):
        with pytest.raises(UserError, match=r"^/dev/full: cannot be written \(No space left on device\)"):
            predict(str(pulled), image, environment, output=Path("/dev/full"), format=format)
    monkeypatch.setattr(sys, "stdout", None)  # what Python makes of `>&-`
    with pytest.raises(UserError, match="standard output is closed"):
        predict(str(pulled), image, environment)


def test_a_reader_that_has_enough_is_no_error(digits: Place, pulled: Path, tested: Path) -> None:
    command, variables = digits.command("predict", str(pulled), str(tested))
    variables["LLAMA_CPP_HOME"] = str(find_toolchain(read_environment()).home)
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, b"Traceback" in said) == (0, False), said


def test_asking_from_python_imports_no_torch() -> None:
    heavy = {"torch", "transformers", "gradio", "boto3"}
    program = f"import sys; from pocketvlm import Model; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
