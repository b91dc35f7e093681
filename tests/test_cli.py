"""The door: what its help says, and which exit code and lines a mistake gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pocketvlm import errors
from pocketvlm.cli import build_parser, main

ROOT = Path(__file__).parents[1]
HELP = {
    "plan": ["RUN", "jobs/digits.yaml", "refuse"],
    "run": ["RUN", "jobs/digits.yaml", "every stage"],
    "stage": ["RUN", "labeller", "trainer", "merger", "quantiser", "evaluator"],
    "report": ["RUN", "--to", "--open", "HTML"],
    "review": ["RUN", "--to", "--images", "100", "--label-studio", "tasks.json", "--open", "least certain"],
    "pull": ["NAME", "--version", "--to", "--types", "q8_0", "sha256", "latest"],
    "verify": ["DIR", "sha256", "golden"],
    "predict": ["NAME_OR_DIR", "IMAGE", "table", "jsonl", "csv", "--output", "--type", "--version", "llama.cpp"],
    "demo": ["NAME_OR_DIR", "--host", "--port", "7860", "camera", "base", "--no-base"],
    "compare": ["RUN", "baseline", "--to", "--open", "each image"],
    "publish": ["NAME", "--to", "hub:OWNER/NAME", "--parts", "gguf,merged,dataset", "--private", "--yes", "nothing is sent"],
    "doctor": ["PATH", "--checkpoint", "--base", "--json", "faults"],
    "conduct": ["PLAN", "--check", "conductor.json", "Jobs", "Kubernetes"],
    "bucket": ["--check", "--deadline-s", "120", "wait"],
}


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing that a test makes lands in the tree, and no store of the developer is touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POCKETVLM_STORE", str(tmp_path / "store"))


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_help_lists_the_commands_the_exit_codes_and_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in [*HELP, "--store", "s3://bucket/prefix", "exit codes", "POCKETVLM_STORE", "AWS_ACCESS_KEY_ID", "_FILE"]:
        assert word in text, word


@pytest.mark.parametrize("command", HELP)
def test_help_of_a_command_says_what_its_user_needs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for word in HELP[command]:
        assert word in text, word


def test_every_command_has_its_help_checked_here() -> None:
    usage = build_parser().format_help()
    listed = [line.split()[0] for line in usage.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == list(HELP)


def test_every_exit_code_of_the_error_family_is_in_the_help() -> None:
    codes = {error.exit_code for error in vars(errors).values() if isinstance(error, type)}
    text = build_parser().format_help()
    for code in codes - {1}:
        assert f" {code} " in text.replace("\n", " ")
    assert "other: try again" in text


@pytest.mark.parametrize("arguments", [[], ["paint"], ["plan"], ["pull", "digits"], ["stage", "painter", "run.yaml"]])
def test_a_wrong_command_line_is_a_users_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: pocketvlm" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "run", "report", "stage labeller"])
def test_a_bad_run_file_gives_two_and_one_line_for_each_problem_on_stderr(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "run: {name: pets, taks: {}, device: {canvas_px: 1}}\n")
    assert main([*command.split(), path]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert "run.taks: no such key; did you mean `task`?" in shown.err
    keys = [line.split(": ")[-2 if "missing" in line else 1] for line in shown.err.removeprefix("error: ").splitlines()]
    assert len(keys) == 6  # task, student, labeller, trainer missing; canvas_px; taks
    assert "Traceback" not in shown.err


def test_a_missing_run_file_gives_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "nothing.yaml"]) == 2
    assert "error: nothing.yaml: cannot be read" in capsys.readouterr().err


def test_a_wrong_environment_gives_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("POCKETVLM_THREADS", "all")
    assert main(["plan", "nothing.yaml"]) == 2
    assert "POCKETVLM_THREADS" in capsys.readouterr().err


def test_a_release_that_does_not_exist_gives_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store").mkdir()
    assert main(["pull", "digits", "--to", str(tmp_path / "to")]) == 2
    assert "there is no release digits" in capsys.readouterr().err


def test_a_stage_whose_input_is_not_there_says_which_command_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stage", "quantiser", str(ROOT / "jobs" / "digits.yaml")]) == 2
    assert "the merger of run digits-" in (text := capsys.readouterr().err)
    assert "pocketvlm stage merger RUN" in text and "pocketvlm run RUN" in text


def test_the_store_of_the_command_line_wins_over_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    assert main(["--store", str(tmp_path / "other"), "pull", "digits", "--to", "to"]) == 2
    assert str(tmp_path / "other") in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "pocketvlm", "doctor", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")


def test_the_process_ends_with_the_code_and_without_a_traceback(tmp_path: Path) -> None:
    path = write(tmp_path, "recipe: {}\n")
    done = subprocess.run([sys.executable, "-m", "pocketvlm", "plan", path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {path}: has no `run:` block; put the recipe under `run:`\n"
