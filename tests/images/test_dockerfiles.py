"""Dockerfiles: short, pinned, without a shell or root at the end, and cached as far as can be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketvlm.llamacpp.build import default_home, read_pin

ROOT = Path(__file__).parents[2]
JOBS = ("labeller", "trainer", "merger", "quantiser", "evaluator", "conductor")
BASES = ("base", "build", "torch", "llama-cpp")


def test_each_stage_and_the_conductor_has_an_image(dockerfile) -> None:
    assert dockerfile.image in (*JOBS, *BASES)
    assert {path.parent.name for path in ROOT.glob("images/*/Dockerfile")} == {*JOBS, *BASES}


def test_a_dockerfile_is_short_and_says_what_it_is_for(dockerfile) -> None:
    assert len(dockerfile.text.splitlines()) <= 25
    assert dockerfile.text.startswith("# ")


def test_a_job_image_starts_pocketvlm_as_a_numeric_user_and_without_a_shell(job_dockerfile) -> None:
    assert [(found.name, found.value) for found in job_dockerfile.final_stage[-2:]] == [
        ("USER", "10001:10001"), ("ENTRYPOINT", '["pocketvlm"]')]  # fmt: skip
    assert job_dockerfile.all("CMD") == []


def test_a_job_image_says_in_oci_labels_what_it_is(job_dockerfile) -> None:
    (label,) = job_dockerfile.all("LABEL")
    assert f"org.opencontainers.image.title=pocketvlm-{job_dockerfile.image} " in label.value
    assert re.search(r'org.opencontainers.image.description="PocketVLM: [^"]+"', label.value)
    assert "org.opencontainers.image.revision=${REVISION}" in label.value


def test_only_the_base_comes_from_outside_and_it_is_pinned_by_digest(dockerfile) -> None:
    arguments = dict(found.value.split("=", 1) for found in dockerfile.all("ARG"))
    for found in dockerfile.all("FROM"):
        name = re.fullmatch(r"\$\{(\w+)\}(?: AS [\w-]+)?", found.value)
        assert name, found
        if dockerfile.image == "base":
            assert re.fullmatch(r"docker\.io/library/python:3\.12-slim-bookworm@sha256:[0-9a-f]{64}", arguments[name[1]])
        else:
            assert arguments[name[1]] == f"pocketvlm-{name[1].lower().replace('_', '-')}:dev"
            assert name[1].lower().replace("_", "-") in BASES


def test_nothing_is_loaded_but_packages_by_hash_and_the_compiler(dockerfile) -> None:
    assert dockerfile.all("ADD") == []
    assert not re.search(r"https?://|\bcurl\b|\bwget\b|\bgit clone\b|--index-url|--trusted-host", dockerfile.text)
    for run in dockerfile.all("RUN"):
        for command in re.split(r"&&|;", run.value):
            if re.search(r"pip (install|wheel|download)", command):
                assert "--require-hashes" in command or "--no-deps" in command, command


def test_dependencies_are_a_layer_before_the_code(job_dockerfile) -> None:
    layers = [found.name + " " + found.value for found in job_dockerfile.final_stage if found.name in ("RUN", "COPY")]
    assert layers[-1] == "COPY --from=build /code /opt/venv"
    assert not any("src" in layer.split() for layer in layers)


def test_a_stage_that_needs_torch_shares_its_layer(dockerfile_of) -> None:
    for image in ("trainer", "merger"):
        assert dockerfile_of(image).final_stage[0].value == "${TORCH}"
    for image in ("quantiser", "evaluator"):
        assert dockerfile_of(image).final_stage[0].value == "${LLAMA_CPP}"
    assert dockerfile_of("llama-cpp").final_stage[0].value == "${TORCH}"
    for image in ("labeller", "conductor"):
        assert dockerfile_of(image).final_stage[0].value == "${BASE}"


def test_the_context_holds_what_is_copied_and_nothing_else(dockerfile) -> None:
    ignored, *lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == "*"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert set(allowed) == {"LICENSE", "README.md", "pyproject.toml", "src", "images/*/requirements.txt"}
    for copy in dockerfile.all("COPY"):
        for source in copy.sources:
            assert (ROOT / source).exists(), source
            assert any(source == name or Path(source).match(name) or source.startswith(f"{name}/") for name in allowed)


def test_llama_cpp_is_built_by_the_script_of_laptops_from_the_standard_library_and_what_is_copied(
    dockerfile_of, tmp_path: Path
) -> None:
    llama_cpp = dockerfile_of("llama-cpp")
    for copy in llama_cpp.all("COPY"):
        for source in copy.sources:
            if source.startswith("src/"):
                target = tmp_path / source.removeprefix("src/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, target)
    assert any("python -m pocketvlm.llamacpp.build --cache /var/cache/" in run.value for run in llama_cpp.all("RUN"))
    home = default_home(tmp_path / "cache")
    home.mkdir(parents=True)
    (home / "build.json").write_text(json.dumps({"commit": read_pin().commit}))  # a finished build, found and not made again
    command = [sys.executable, "-S", "-m", "pocketvlm.llamacpp.build", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert (done.stderr, done.stdout) == ("", f"{home}\n")


@pytest.mark.parametrize("builder", ["docker", "buildah"])
def test_make_images_builds_each_image_after_its_bases(builder: str, dockerfile_of) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not on PATH")
    command = ["make", "--dry-run", "images", f"BUILDER={builder}", "TAG=t1", "PYTHON_IMAGE=python:local"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    builds = re.findall(rf"^{builder} (?:build|bud) .*--file images/([\w-]+)/Dockerfile --tag (\S+) (.*) \.", done.stdout, re.M)
    assert {image for image, _, _ in builds} == {*JOBS, *BASES}
    built: list[str] = []
    for image, tag, arguments in builds:
        given = dict(re.findall(r"--build-arg (\w+)=(\S+)", arguments))
        wanted = {found.value.split("=")[0] for found in dockerfile_of(image).all("ARG")}
        assert set(given) == wanted, f"{image}: build arguments"
        assert {value for name, value in given.items() if name not in ("PYTHON_IMAGE", "REVISION")} <= set(built)
        assert tag == f"pocketvlm-{image}:t1"
        built.append(tag)
