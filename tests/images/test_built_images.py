"""The images that `make images BUILDER=buildah TAG=dev` has made, each run as a pod runs it: read-only root, uid 10001."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

# What the kubelet does under readOnlyRootFilesystem with emptyDirs at /tmp and /work. Mounts end with the process.
AS_A_POD = """
mount --bind "$root" "$root" && mount --bind /dev "$root/dev" && mount -t proc proc "$root/proc" &&
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp" && mount -t tmpfs -o uid=10001,gid=10001 tmpfs "$root/work" &&
mount -o remount,bind,ro "$root" && exec chroot --userspec=10001:10001 "$root" env -i "$@"
"""
TORCH_IMAGES = ("trainer", "merger", "quantiser", "evaluator")
OWN_MODULES = {
    "labeller": ["pocketvlm.stages.labeller", "pocketvlm.stages.labelling", "pocketvlm.sources"],
    "trainer": ["pocketvlm.stages.trainer", "pocketvlm.stages.training", "pocketvlm.student"],
    "merger": ["pocketvlm.stages.merger", "pocketvlm.student"],
    "quantiser": ["pocketvlm.stages.quantiser", "pocketvlm.llamacpp"],
    "evaluator": ["pocketvlm.stages.evaluator", "pocketvlm.stages.evaluation", "pocketvlm.report", "pocketvlm.verify"],
    "conductor": ["pocketvlm.cli", "pocketvlm.run_file", "kubernetes.client", "prometheus_client"],
}
"""Image -> modules, and packages with all their modules, that it must be able to import."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def buildah(*arguments: str) -> str:
    return subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def built(image: str) -> str:
    """Name of a built image; skips if it is not there."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("built images are examined with buildah as root")
    name = f"localhost/pocketvlm-{image}:dev"
    if subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True).returncode:
        pytest.skip(f"{name} is not built: make images BUILDER=buildah TAG=dev")
    return name


def config(image: str) -> dict[str, Any]:
    """The image's OCI configuration."""
    return dict(json.loads(buildah("inspect", "--type", "image", built(image)))["OCIv1"])


@pytest.fixture(scope="module")
def run_in() -> Iterator[Run]:
    """`run_in("trainer", "python", "-c", "...")`: a command in the image as in a pod."""
    with ExitStack() as containers:
        roots: dict[str, str] = {}

        def run(image: str, *command: str) -> subprocess.CompletedProcess[str]:
            if image not in roots:
                container = buildah("from", "--pull-never", built(image))
                containers.callback(buildah, "rm", container)
                roots[image] = buildah("mount", container)
            shell = ["unshare", "--mount", "sh", "-c", AS_A_POD, "sh", *config(image)["config"]["Env"], *command]
            return subprocess.run(shell, capture_output=True, text=True, timeout=300, env={**os.environ, "root": roots[image]})

        yield run


def test_pocketvlm_starts_as_uid_10001_on_a_read_only_root(run_in: Run, job_image: str) -> None:
    entrypoint = config(job_image)["config"]["Entrypoint"]
    done = run_in(job_image, *entrypoint, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: pocketvlm")
    code = "import os, pathlib; print(os.getuid(), os.getgid()); pathlib.Path('/opt/venv/x').touch()"
    done = run_in(job_image, "python", "-c", code)
    assert done.stdout == "10001 10001\n"
    assert "Read-only file system" in done.stderr


def test_the_configuration_is_what_the_dockerfile_says(job_image: str) -> None:
    found = config(job_image)["config"]
    assert (found["User"], found["Entrypoint"], found.get("Cmd")) == ("10001:10001", ["pocketvlm"], None)
    assert found["Labels"]["org.opencontainers.image.title"] == f"pocketvlm-{job_image}"
    assert found["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_an_image_can_import_all_that_its_job_imports(run_in: Run, job_image: str) -> None:
    program = f"""
import importlib, pkgutil
for name in {OWN_MODULES[job_image]!r}:
    module = importlib.import_module(name)
    if name.startswith("pocketvlm."):
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
            if found.name != "pocketvlm.llamacpp.convert_runner":
                importlib.import_module(found.name)
"""
    done = run_in(job_image, "python", "-c", program)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("image", "package"),
    [("conductor", "torch"), ("conductor", "boto3"), ("conductor", "numpy"), ("conductor", "pyarrow"),
     ("labeller", "torch"), ("labeller", "transformers"), ("labeller", "kubernetes")],
)  # fmt: skip
def test_an_image_lacks_what_its_job_does_not_need(run_in: Run, image: str, package: str) -> None:
    done = run_in(image, "python", "-c", f"import {package}")
    assert f"No module named '{package}'" in done.stderr


def test_no_image_can_install_anything(run_in: Run, job_image: str) -> None:
    assert "No module named pip" in run_in(job_image, "python", "-m", "pip", "--version").stderr
    code = "import shutil; print([shutil.which(name) for name in ('pip', 'pip3', 'uv', 'g++', 'cmake', 'ninja')])"
    assert run_in(job_image, "python", "-c", code).stdout == f"{[None] * 6}\n"


def test_nothing_is_compiled_again_by_each_process(run_in: Run, job_image: str) -> None:
    modules = "pocketvlm.cli" + (", torch" if job_image in TORCH_IMAGES else "")
    done = run_in(job_image, "python", "-v", "-c", f"import {modules}")
    assert done.returncode == 0
    compiled = [line for line in done.stderr.splitlines() if line.startswith("# code object from") and line.endswith(".py'")]
    assert compiled == []


@pytest.mark.parametrize("image", TORCH_IMAGES)
def test_torch_is_one_layer_for_all_who_need_it(image: str) -> None:
    shared = config("torch")["rootfs"]["diff_ids"]
    assert config(image)["rootfs"]["diff_ids"][: len(shared)] == shared


@pytest.mark.parametrize("image", ["quantiser", "evaluator"])
def test_the_pinned_llama_cpp_is_found_and_runs(run_in: Run, image: str) -> None:
    program = """
from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain
toolchain = find_toolchain(read_environment())
print(toolchain.run("llama-server", ["--version"]))
toolchain.gguf()
import sys
sys.path.insert(0, str(toolchain.home))
import conversion.base
"""
    done = run_in(image, "python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert "version:" in done.stdout
