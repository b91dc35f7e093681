"""What the environment says, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketvlm.environment import Environment, Shard, read_environment
from pocketvlm.errors import UserError

VARIABLES = [str(field.validation_alias) for field in Environment.model_fields.values()] + ["AWS_ENDPOINT_URL"]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(f"{variable}_FILE", raising=False)


def test_without_variables_everything_lies_in_the_working_folder_and_the_user_cache() -> None:
    environment = read_environment()
    assert environment.store == ".pocketvlm/store"
    assert environment.scratch == Path(".pocketvlm/scratch")
    assert environment.cache == Path.home() / ".cache" / "pocketvlm"
    assert environment.access_key_id is None


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_STORE", "s3://models/team")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("POCKETVLM_THREADS", "3")
    environment = read_environment()
    assert (environment.store, environment.region) == ("s3://models/team", "eu-central-1")
    assert environment.thread_count() == 3
    assert environment.access_key_id is not None
    assert environment.access_key_id.get_secret_value() == "key"


def test_a_secret_comes_from_a_mounted_file_without_its_line_break(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("hidden\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY_FILE", str(tmp_path / "secret"))
    environment = read_environment()
    assert environment.secret_access_key is not None
    assert environment.secret_access_key.get_secret_value() == "hidden"


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name != "AWS_ENDPOINT_URL"])
def test_every_variable_can_come_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "value").write_text("7\n")
    monkeypatch.setenv(f"{variable}_FILE", str(tmp_path / "value"))
    environment = read_environment()
    assert "7" in [getattr(value, "get_secret_value", lambda v=value: str(v))() for _, value in environment]


def test_a_missing_secret_file_names_the_variable_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_FILE", "/nowhere/token")
    with pytest.raises(UserError, match="HF_TOKEN_FILE=/nowhere/token: cannot be read") as error:
        read_environment()
    assert error.value.exit_code == 2
    assert "set HF_TOKEN" in str(error.value)


@pytest.mark.parametrize("value", ["none", "0", "-1"])
def test_a_wrong_number_names_its_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POCKETVLM_THREADS", value)
    with pytest.raises(UserError, match="environment variable POCKETVLM_THREADS"):
        read_environment()


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_STORE", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    environment = read_environment()
    assert environment.store == ".pocketvlm/store"
    assert environment.endpoint_url is None


def test_the_general_endpoint_serves_where_there_is_none_for_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:9000")
    assert read_environment().endpoint_url == "http://general:9000"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:9000")
    assert read_environment().endpoint_url == "http://s3:9000"


def test_secrets_do_not_show_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(variable, "canary-4711")
    environment = read_environment()
    assert "canary-4711" not in f"{environment} {environment!r} {environment.model_dump_json()}"


def test_the_home_folder_is_resolved_in_the_cache_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_CACHE", "~/somewhere")
    assert read_environment().cache == Path.home() / "somewhere"


def test_threads_default_to_the_cores_that_the_process_may_use() -> None:
    assert read_environment().thread_count() >= 1


@pytest.mark.parametrize("variable", ["STORE", "CACHE", "SHARDS", "METRICS_PORT", "REGION"])
def test_a_variable_of_somebody_else_is_not_ours(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Kubernetes sets METRICS_PORT=tcp://... in every pod of a namespace that has a Service `metrics`."""
    before = read_environment()
    monkeypatch.setenv(variable, "tcp://10.96.0.7:9090")
    assert read_environment() == before


def test_without_shards_a_process_does_all_of_the_work_whatever_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_environment().shard() == Shard(0, 1)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")  # Kubernetes sets it in every Indexed Job, a trainer's too
    assert read_environment().shard() == Shard(0, 1)


@pytest.mark.parametrize(("shards", "index", "expected"), [("1", None, Shard(0, 1)), ("3", "2", Shard(2, 3))])
def test_a_pod_of_an_indexed_job_knows_its_share(
    monkeypatch: pytest.MonkeyPatch, shards: str, index: str | None, expected: Shard
) -> None:
    monkeypatch.setenv("POCKETVLM_SHARDS", shards)
    if index:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    assert read_environment().shard() == expected


def test_shards_without_an_index_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_SHARDS", "3")
    with pytest.raises(UserError, match=r"POCKETVLM_SHARDS=3: JOB_COMPLETION_INDEX is not set.*completionMode: Indexed"):
        read_environment().shard()


def test_an_index_beyond_the_shards_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_SHARDS", "3")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    with pytest.raises(UserError, match=r"JOB_COMPLETION_INDEX=3: POCKETVLM_SHARDS=3 has the shares 0 to 2; set both"):
        read_environment().shard()


@pytest.mark.parametrize(("variable", "value"), [("POCKETVLM_SHARDS", "0"), ("POCKETVLM_METRICS_PORT", "70000"),
                                                 ("JOB_COMPLETION_INDEX", "-1")])  # fmt: skip
def test_a_number_out_of_range_names_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"environment variable {variable}"):
        read_environment()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_item_is_in_exactly_one_share_and_batches_stay_together(count: int, batch: int) -> None:
    shares = [Shard(index, count).take(range(23), batch) for index in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(23))
    assert {len({item // batch for item in share} & {item // batch for item in other})
            for share in shares for other in shares if share is not other} <= {0}  # fmt: skip


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETVLM_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UserError, match="set HOME or POCKETVLM_CACHE"):
        read_environment()
