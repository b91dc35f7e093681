"""A store in an S3 bucket: AWS, MinIO, Ceph or any endpoint with conditional writes. The only importer of boto3.

botocore retries a number of times and knows no deadline, so single requests go out once and `_try` repeats them until
a deadline; so too for the ranges of a download. Uploads keep botocore's retries for their parts, and `_try` repeats the
whole until nothing has moved for as long.
"""

from __future__ import annotations

import itertools
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from pocketvlm.artifacts.s3_errors import code_of, explain, status_of
from pocketvlm.artifacts.store import KeyMissing, Store, Stored, check_key, open_part
from pocketvlm.errors import BucketMissing, ConditionIgnored, CredentialsError, StoreUnavailable, UserError

Result = TypeVar("Result")

PART_BYTES = 16 << 20
"""AWS advises ranges of 8-16 MB, aligned with the parts (S3 performance whitepaper)."""
THREADS = 8
"""Parts of one file at once; one connection gives about 85 MB/s. A download holds that many in memory, 128 MB at most."""
SLOWEST_BYTES_PER_S = 1_000_000
"""A transfer that has failed and was slower than this on the whole ends with StoreUnavailable."""
DEADLINE_S = 75.0
"""Carries every request over a minute without the store, as when its pod moves: a try comes at least every 5 s."""
FAILURES = (BotoCoreError, ClientError, Boto3Error)


class Patience:
    """How long a request is tried again: until nothing has moved for `idle_s`, and not for ever however much moves."""

    def __init__(self, idle_s: float, size: int = 0) -> None:
        self._idle_s = idle_s
        self._moved = time.monotonic()
        self._end = self._moved + idle_s + size / SLOWEST_BYTES_PER_S

    def moved(self, count: int) -> None:
        """Tells of bytes that went over; a part that is sent again counts as negative."""
        if count > 0:
            self._moved = time.monotonic()

    @property
    def left_s(self) -> float:
        """Below zero: it is lost."""
        return min(self._moved + self._idle_s, self._end) - time.monotonic()


class S3Store(Store):
    """Keys are objects below the prefix of `url`, `s3://bucket/prefix`.

    Without keys, boto3's own chain finds them (workload identity, profile, instance role). `deadline_s` bounds a
    request with all its retries; a try that began before may run over by `timeout_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        access_key_id: SecretStr | None = None,
        secret_access_key: SecretStr | None = None,
        session_token: SecretStr | None = None,
        part_bytes: int = PART_BYTES,
        deadline_s: float = DEADLINE_S,
        timeout_s: float = 30.0,
    ) -> None:
        """Connects to nothing yet. Raises UserError for a URL, endpoint or pair of keys that cannot work."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not url.startswith("s3://") or not bucket:
            raise UserError(f"POCKETVLM_STORE={url}: is not s3://bucket/prefix; name a bucket")
        if (access_key_id is None) != (secret_access_key is None):
            missing = "AWS_SECRET_ACCESS_KEY" if access_key_id else "AWS_ACCESS_KEY_ID"
            raise CredentialsError(f"store {url}: {missing} is not set; set both keys, or none for workload identity")
        self.url = url
        self._bucket, self._region = bucket, region
        self._prefix = f"{prefix}/" if prefix else ""
        self.place = f"store {url}" + (f" at {endpoint_url}" if endpoint_url else "")
        """For messages."""
        self._deadline_s = deadline_s
        self._part_bytes = part_bytes
        self._transfer = TransferConfig(
            multipart_threshold=part_bytes, multipart_chunksize=part_bytes, max_concurrency=THREADS,
            # The CRT client ignores these numbers and chooses itself by the machine: the same everywhere is better.
            preferred_transfer_client="classic",
        )

        def client(attempts: int) -> Any:
            return session.client("s3", endpoint_url=endpoint_url, config=Config(
                connect_timeout=min(5.0, timeout_s), read_timeout=timeout_s, max_pool_connections=64,
                retries={"mode": "standard", "total_max_attempts": attempts},
                # Third-party servers name no bucket hosts, and some refuse the checksums that newer SDKs add.
                s3={"addressing_style": "path" if endpoint_url else "auto"},
                request_checksum_calculation="when_required", response_checksum_validation="when_required",
            ))

        try:
            session = boto3.session.Session(
                aws_access_key_id=_reveal(access_key_id), aws_secret_access_key=_reveal(secret_access_key),
                aws_session_token=_reveal(session_token), region_name=region,
            )
            self._client, self._transfer_client = client(1), client(4)
        except (ValueError, BotoCoreError) as error:
            raise UserError(f"{self.place}: {error}; check AWS_ENDPOINT_URL_S3 and AWS_REGION") from error

    def read(self, key: str) -> bytes:
        return self._get(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        try:
            return self._get(key)
        except KeyMissing:
            return None

    def read_part(self, key: str, start: int, end: int) -> bytes:
        return self._range(key, start, end)

    def write(self, key: str, data: bytes) -> None:
        self._try("write", key, lambda: self._client.put_object(**self._at(key), Body=data))

    def create(self, key: str, data: bytes) -> bool:
        return self._put_if(key, data, None)

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        return self._put_if(key, data, tag)

    def upload(self, path: Path, key: str) -> None:
        patience = Patience(self._deadline_s, path.stat().st_size)
        self._try("upload", key, lambda: self._transfer_client.upload_file(
            str(path), **self._at(key), Config=self._transfer, Callback=patience.moved), patience)

    def download(self, key: str, path: Path) -> None:
        size = self._try("read", key, lambda: self._client.head_object(**self._at(key)))["ContentLength"]
        with open_part(path, size) as file, ThreadPoolExecutor(THREADS) as pool:
            waiting: deque[Future[bytes]] = deque()
            try:
                # A file that grows in order may end anywhere: what there is of it is always a beginning.
                for start, end in self._ranges(file.tell(), size):
                    waiting.append(pool.submit(self._range, key, start, end))
                    if len(waiting) == THREADS:
                        file.write(waiting.popleft().result())
                while waiting:
                    file.write(waiting.popleft().result())
            finally:
                pool.shutdown(cancel_futures=True)

    def _ranges(self, start: int, size: int) -> Iterator[tuple[int, int]]:
        """From `start` to the end, in ranges that are aligned with the parts."""
        while start < size:
            end = min((start // self._part_bytes + 1) * self._part_bytes, size)
            yield start, end
            start = end

    def _range(self, key: str, start: int, end: int) -> bytes:
        def attempt() -> bytes:
            # Not the body's own `with`: that gives the raw stream, whose errors are urllib3's.
            with closing(self._client.get_object(**self._at(key), Range=f"bytes={start}-{end - 1}")["Body"]) as body:
                data: bytes = body.read()
                return data

        data = self._try("download", key, attempt, Patience(self._deadline_s, end - start))
        if len(data) != end - start:
            raise UserError(f"{self.place}: gave {len(data)} bytes of {key} where {end - start} were asked for; use a store "
                            "that reads ranges")
        return data

    def list(self, prefix: str) -> Iterator[Stored]:
        request = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._try("list", prefix, lambda: self._client.list_objects_v2(**request))
            for item in page.get("Contents", []):
                yield Stored(item["Key"].removeprefix(self._prefix), item["Size"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, prefix: str) -> None:
        assert prefix.strip("/"), "deleting a whole store is not what anybody wants"
        # One by one: the batch request needs a checksum that not every server takes, and prefixes hold few keys.
        keys = [stored.key for stored in self.list(prefix)]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(self._delete_one, keys):
                pass

    def make_bucket(self) -> bool:
        """Makes the bucket unless it is there. Raises UserError when it is somebody else's, or when no S3 service answers."""
        try:
            self._try("find", f"bucket {self._bucket}", lambda: self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1))
            return False
        except BucketMissing:
            return self._try("make", f"bucket {self._bucket}", self._make_bucket)
        except KeyMissing as error:  # S3 itself says NoSuchBucket
            raise UserError(f"{self.place}: what answers there (404) is no S3 service; check AWS_ENDPOINT_URL_S3") from error

    def _make_bucket(self) -> bool:
        # AWS wants every region named but this one.
        place = {} if self._region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        try:
            self._client.create_bucket(Bucket=self._bucket, **place)
        except ClientError as error:
            if code_of(error) == "BucketAlreadyOwnedByYou":  # somebody was faster
                return False
            if code_of(error) == "BucketAlreadyExists":
                raise UserError(f"{self.place}: the bucket {self._bucket} belongs to somebody else; name another one in "
                                "POCKETVLM_STORE") from error
            raise
        return True

    def _delete_one(self, key: str) -> None:
        self._try("delete", key, lambda: self._client.delete_object(**self._at(key)))

    def _get(self, key: str) -> tuple[bytes, str]:
        def attempt() -> tuple[bytes, str]:
            answer = self._client.get_object(**self._at(key))
            with closing(answer["Body"]) as body:
                return body.read(), answer["ETag"]

        return self._try("read", key, attempt)

    def _put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        """PUT if the key is absent (no tag), or has this ETag.

        A repeated PUT may be refused because of its own first try, whose answer was lost. So every PUT carries a token,
        and a refusal after a retry asks whose bytes are there.
        """
        token = uuid.uuid4().hex
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        tries = itertools.count()

        def attempt() -> bool:
            first = next(tries) == 0
            try:
                self._client.put_object(**self._at(key), Body=data, Metadata={"attempt": token}, **condition)
                return True
            except ClientError as error:
                code, status = code_of(error), status_of(error)
                if code == "NotImplemented":
                    raise ConditionIgnored(f"{self.place}: has no {next(iter(condition))} for PUT; use a store with "
                                           "conditional writes (AWS S3, MinIO of 2025 or later, Ceph)") from error
                if code == "NoSuchKey" or (status == 412 and first):
                    return False
                if status == 412:
                    return self._head(key)[1] == token
                if status == 409:
                    etag, holder = self._head(key)
                    if etag != tag:  # settled: somebody's write is there, or what we read is gone
                        return holder == token
                raise  # a conflict that is not settled yet is tried again

        return self._try("write", key, attempt)

    def _head(self, key: str) -> tuple[str | None, str | None]:
        """ETag of `key` and the token of the PUT that made it; (None, None) if it is absent."""
        try:
            answer = self._client.head_object(**self._at(key))
        except ClientError as error:
            if code_of(error) in ("NoSuchKey", "404"):
                return None, None
            raise
        return answer["ETag"], answer.get("Metadata", {}).get("attempt")

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _try(self, verb: str, key: str, attempt: Callable[[], Result], patience: Patience | None = None) -> Result:
        """Repeats `attempt` while it fails for reasons that pass, until the deadline, at which the last try comes."""
        patience = patience or Patience(self._deadline_s)
        for count in itertools.count():
            try:
                return attempt()
            except FAILURES as error:
                failure = explain(error, f"{self.place}: cannot {verb} {key}", self._bucket)
                left_s = patience.left_s
                if not isinstance(failure, StoreUnavailable) or left_s <= 0:
                    raise failure from error
            # Full jitter, so that many pods do not come back at the same moment.
            time.sleep(min(left_s, random.uniform(0, min(5.0, 0.2 * 2**count))))
        raise AssertionError("the loop above has no end but return and raise")


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
