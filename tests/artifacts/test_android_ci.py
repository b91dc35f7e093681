"""The example workflow for Android, its commands run as they stand against a real MinIO."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config

from pocketvlm.artifacts.release import Release, publish_release

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "android-ci.md"
SCRIPT = ROOT / "docs" / "examples" / "fetch-release.sh"
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "examples" / "android-ci.yaml").read_text())
NOT_RUN = "Install PocketVLM"
"""Comes from a repository; here it is installed already."""
GRADLE = """#!/bin/sh
set -e
cd "$MODELS"
test -s release.json
test -s model-q8_0.gguf
test -s mmproj-q8_0.gguf
echo built >&2
"""


@dataclass(frozen=True)
class App:
    """The checkout of an app, and what its repository's settings say."""

    folder: Path
    settings: dict[str, str]

    def run(self, job: str) -> subprocess.CompletedProcess[str]:
        """Runs the commands of a job one after the other, until one fails."""
        for step in WORKFLOW["jobs"][job]["steps"]:
            if "run" in step and step.get("name") != NOT_RUN:
                done = self.shell(step["run"], {**WORKFLOW["env"], **WORKFLOW["jobs"][job]["env"]})
                if done.returncode:
                    break
        return done

    def shell(self, script: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Runs a script as GitHub's runner does."""
        known = {name: re.sub(r"\$\{\{ (\S+) \}\}", lambda found: self.settings[found[1]], value)
                 for name, value in variables.items()}  # fmt: skip
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        env = {"PATH": path, "HOME": str(self.folder.parent), "GITHUB_OUTPUT": str(self.folder / "output"), **known}
        return subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=self.folder, env=env, capture_output=True, text=True)

    @property
    def models(self) -> Path:
        return self.folder / WORKFLOW["env"]["MODELS"]


@pytest.fixture
def bucket(minio_endpoint) -> str:
    return str(minio_endpoint.create_bucket())


@pytest.fixture
def release(minio_endpoint, bucket: str, tmp_path: Path, make_release) -> Release:
    """A small release of the workflow's model in a private bucket."""
    described = make_release(tmp_path / "in", name=WORKFLOW["env"]["RELEASE"])
    return publish_release(minio_endpoint.store(bucket), described, tmp_path / "in")


@pytest.fixture
def app(minio_endpoint, bucket: str, tmp_path: Path) -> App:
    for tool in ("bash", "curl", "sha256sum"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH")
    folder = tmp_path / "app"
    (folder / "ci").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "ci")
    (folder / "gradlew").write_text(GRADLE)
    (folder / "gradlew").chmod(0o755)
    return App(folder, {
        "vars.STORE_URL": f"{minio_endpoint.url}/{bucket}/some/prefix",
        "vars.POCKETVLM_STORE": f"s3://{bucket}/some/prefix", "vars.AWS_ENDPOINT_URL_S3": minio_endpoint.url,
        "secrets.AWS_ACCESS_KEY_ID": minio_endpoint.access_key_id,
        "secrets.AWS_SECRET_ACCESS_KEY": minio_endpoint.secret_access_key,
    })  # fmt: skip


@pytest.fixture
def readable(minio_endpoint, bucket: str) -> None:
    """The bucket has the policy of the page."""
    (policy,) = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    client = boto3.client("s3", endpoint_url=minio_endpoint.url, region_name="us-east-1",
                          aws_access_key_id=minio_endpoint.access_key_id,
                          aws_secret_access_key=minio_endpoint.secret_access_key,
                          config=Config(s3={"addressing_style": "path"}))  # fmt: skip
    client.put_bucket_policy(Bucket=bucket, Policy=policy.replace("BUCKET", bucket).replace("PREFIX", "some/prefix"))
    client.close()


def test_curl_fetches_a_release_that_everybody_may_read(app: App, release: Release, readable: None) -> None:
    done = app.run("with-curl")
    assert (done.returncode, done.stderr) == (0, "built\n")
    assert json.loads((app.models / "release.json").read_text())["version"] == release.version
    assert (app.models / "golden" / "0.png").is_file()
    latest = json.loads((app.folder / "latest.json").read_text())
    assert (app.folder / "output").read_text() == f"sha256={latest['release_sha256']}\n"


def test_everybody_may_read_releases_and_nothing_else(
    app: App, minio_endpoint, bucket: str, release: Release, readable: None
) -> None:
    minio_endpoint.store(bucket).write("runs/elements/run.yaml", b"run: {}")
    url = app.settings["vars.STORE_URL"]
    for path, code in (("releases/elements/latest.json", 0), ("runs/elements/run.yaml", 22), ("", 22)):
        assert app.shell(f"curl -fsS {url}/{path} -o /dev/null", {}).returncode == code, path


def test_curl_fetches_from_a_private_bucket_with_keys_in_its_own_file(app: App, release: Release) -> None:
    assert app.run("with-curl").returncode != 0
    (keys,) = re.findall(r"^```sh\n(.*?curlrc\n)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    named = {name: f"${{{{ secrets.{name} }}}}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    assert app.shell(keys, {"AWS_REGION": "us-east-1", **named}).returncode == 0
    assert app.run("with-curl").returncode == 0
    assert (app.models / "model-q8_0.gguf").read_text() == "weights model-q8_0.gguf"


def test_pocketvlm_fetches_one_type_from_a_private_bucket(app: App, release: Release) -> None:
    done = app.run("with-pocketvlm")
    assert (done.returncode, done.stderr) == (0, "built\n")
    assert not (app.models / "model-q4_0.gguf").exists()


@pytest.mark.parametrize("job", ["with-curl", "with-pocketvlm"])
def test_a_build_stops_where_there_is_no_release(app: App, readable: None, job: str) -> None:
    done = app.run(job)
    assert done.returncode != 0
    assert "built" not in done.stderr


@pytest.mark.parametrize("job", ["with-curl", "with-pocketvlm"])
def test_a_build_stops_at_a_changed_byte(
    app: App, minio_endpoint, bucket: str, release: Release, readable: None, job: str
) -> None:
    minio_endpoint.store(bucket).write(f"{release.root}model-q8_0.gguf", b"weights model-q8_0.ggug")
    done = app.run(job)
    assert done.returncode != 0
    assert "built" not in done.stderr


def test_the_script_is_the_readmes() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"```sh\n{SCRIPT.read_text()}```" in readme


def test_actions_are_pinned_to_commits() -> None:
    text = (ROOT / "docs" / "examples" / "android-ci.yaml").read_text()
    assert re.findall(r"uses: (\S+@(?![0-9a-f]{40} # v\d).*)", text) == []
