"""What this process is told by its environment: the store, its keys, and folders. The only reader of the environment.

Every secret can come as `NAME` or as `NAME_FILE`, the path of a file that holds it (a mounted Kubernetes secret).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pocketvlm.errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Which share of a stage's items a process has: `index`, `index + count`, ..."""

    index: int = 0
    count: int = 1

    def take(self, items: Sequence[Item], batch: int = 1) -> list[Item]:
        """The items of this share, in order; `batch` neighbours stay together."""
        starts = range(self.index * batch, len(items), self.count * batch)
        return [item for start in starts for item in items[start : start + batch]]


class Environment(BaseSettings):
    """Settings of the process; nothing below the door reads `os.environ`."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True, env_ignore_empty=True)

    store: str = Field(default=".pocketvlm/store", validation_alias="POCKETVLM_STORE")
    """A folder, or `s3://bucket/prefix`."""
    scratch: Path = Field(default=Path(".pocketvlm/scratch"), validation_alias="POCKETVLM_SCRATCH")
    """Where stages put files while they work; safe to delete between runs."""
    cache: Path = Field(default=Path("~/.cache/pocketvlm"), validation_alias="POCKETVLM_CACHE")
    """What clones of one user share: the built llama.cpp."""
    llama_cpp_home: Path | None = Field(default=None, validation_alias="LLAMA_CPP_HOME")
    """An existing build of the pinned llama.cpp; otherwise the one in `cache`."""
    threads: int | None = Field(default=None, ge=1, validation_alias="POCKETVLM_THREADS")
    """CPU threads for torch and llama.cpp; default: the cores that this process may use."""

    metrics_port: int | None = Field(default=None, ge=1, le=65535, validation_alias="POCKETVLM_METRICS_PORT")
    """Port on which a stage serves `/metrics`; default: none."""
    shards: int | None = Field(default=None, ge=1, validation_alias="POCKETVLM_SHARDS")
    """How many processes share the work of this stage; default: it is not shared. See `shard`."""
    completion_index: int | None = Field(default=None, ge=0, validation_alias="JOB_COMPLETION_INDEX")
    """Which of them this one is, from 0. Kubernetes sets it in every pod of an Indexed Job; read only with `shards`."""

    endpoint_url: str | None = Field(default=None, validation_alias="AWS_ENDPOINT_URL_S3")
    region: str = Field(default="us-east-1", validation_alias="AWS_REGION")
    access_key_id: SecretStr | None = Field(default=None, validation_alias="AWS_ACCESS_KEY_ID")
    secret_access_key: SecretStr | None = Field(default=None, validation_alias="AWS_SECRET_ACCESS_KEY")
    session_token: SecretStr | None = Field(default=None, validation_alias="AWS_SESSION_TOKEN")
    hub_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    teacher_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    second_teacher_key: SecretStr | None = Field(default=None, validation_alias="POCKETVLM_SECOND_TEACHER_API_KEY")
    unsplash_key: SecretStr | None = Field(default=None, validation_alias="UNSPLASH_ACCESS_KEY")
    kaggle_user: str | None = Field(default=None, validation_alias="KAGGLE_USERNAME")
    kaggle_key: SecretStr | None = Field(default=None, validation_alias="KAGGLE_KEY")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Arguments, then variables by their whole names: STORE, or METRICS_PORT of a Service `metrics`, is not ours."""
        env_settings.config = {**env_settings.config, "populate_by_name": False}
        return init_settings, env_settings

    def thread_count(self) -> int:
        """CPU threads to use: `POCKETVLM_THREADS`, else the cores this process may run on."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)

    def shard(self) -> Shard:
        """The share of this process. Raises UserError when the two variables do not belong together."""
        if self.shards is None:
            return Shard()
        if self.completion_index is None and self.shards > 1:
            raise UserError(f"POCKETVLM_SHARDS={self.shards}: JOB_COMPLETION_INDEX is not set, so this process does not know "
                            "its share; run it in a Job with `completionMode: Indexed`, which sets it, or unset both")
        index = self.completion_index or 0
        if index >= self.shards:
            raise UserError(f"JOB_COMPLETION_INDEX={index}: POCKETVLM_SHARDS={self.shards} has the shares 0 to "
                            f"{self.shards - 1}; set both `completions` of the Job and POCKETVLM_SHARDS to one number")
        return Shard(index, self.shards)


def calm_idle_threads() -> None:
    """Lets idle threads of torch sleep instead of spin; to be called before torch is imported.

    On a machine whose cores are shared, as a pod's are, spinning threads take the time that the working one waits for:
    on two cores at a load of six, a training step of the tiny student took 3 s with two spinning threads, 0.3 s with
    two sleeping ones.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def read_environment() -> Environment:
    """Reads the environment once. Raises UserError naming the variable, or the file behind `NAME_FILE`."""
    values: dict[str, Any] = {}
    for name, field in Environment.model_fields.items():
        variable = str(field.validation_alias)
        path = os.environ.get(f"{variable}_FILE")
        if path:
            try:
                values[name] = Path(path).read_text().strip()
            except OSError as error:
                raise UserError(
                    f"{variable}_FILE={path}: cannot be read ({error.strerror}); mount the secret there "
                    f"or set {variable}"
                ) from error
    if "AWS_ENDPOINT_URL_S3" not in os.environ and os.environ.get("AWS_ENDPOINT_URL"):
        values.setdefault("endpoint_url", os.environ["AWS_ENDPOINT_URL"])
    try:
        settings = Environment(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"environment variable {first['loc'][0]}: {first['msg']}") from error
    try:
        return settings.model_copy(update={"cache": settings.cache.expanduser()})
    except RuntimeError as error:  # a user without an entry in passwd and without HOME, as a container may run us
        raise UserError(f"POCKETVLM_CACHE={settings.cache}: this user has no home folder; set HOME or POCKETVLM_CACHE "
                        "to a folder that can be written") from error
