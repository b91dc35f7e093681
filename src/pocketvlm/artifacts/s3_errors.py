"""What went wrong at an S3 endpoint, in the words of our error family: who must act, and what to do.

Knows botocore's error names only as text, so that boto3 stays in s3.py.
"""

from __future__ import annotations

from typing import Any

from pocketvlm.artifacts.store import KeyMissing
from pocketvlm.errors import BucketMissing, CredentialsError, PocketVLMError, StoreUnavailable, UserError

REFUSED = {
    "InvalidAccessKeyId": "the store does not know the access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not belong to the access key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; get a new one",
    "InvalidToken": "the session token is not valid; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock differs from the store's by minutes; set it",
    "AccessDenied": "these keys may not do that; allow s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, "
    "s3:DeleteObject and s3:AbortMultipartUpload on its objects (`pull` needs the first two)",
}
KEYLESS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
           "ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "MetadataRetrievalError")
PASSING = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException",
           # A server that was away has forgotten the parts, or has put them together and its answer was lost.
           "NoSuchUpload", "InvalidPart")  # fmt: skip
BROKEN = ("ParamValidationError", "SSLError", "InvalidProxiesConfigError", "UnknownEndpointError", "InvalidRegionError")


def code_of(error: BaseException) -> str:
    """The S3 error code of a botocore ClientError, such as `NoSuchKey`; for a HEAD the HTTP status."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """The HTTP status of a botocore ClientError; 0 if there is none."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answer(error: BaseException) -> dict[str, Any]:
    """What the store answered; empty if it did not (botocore's connection errors have a `response` of None)."""
    return getattr(error, "response", None) or {}


def explain(error: BaseException, doing: str, bucket: str) -> PocketVLMError | KeyMissing:
    """The error to raise; StoreUnavailable if another try may succeed. `doing` says where and what was tried."""
    if type(error).__name__ == "S3UploadFailedError" and error.__context__:
        error = error.__context__  # boto3 wraps the answer of the store in an error of its own
    if _answer(error):
        return _explain_answer(error, doing, bucket)
    name = type(error).__name__
    if name in KEYLESS:
        return CredentialsError(f"{doing}: no keys: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the "
                                "same names with _FILE), or give this workload an identity")
    if name in BROKEN:
        return UserError(f"{doing}: {error}; check POCKETVLM_STORE and AWS_ENDPOINT_URL_S3")
    return StoreUnavailable(f"{doing}: no answer ({error}); check that the store runs and can be reached from here, "
                            "and AWS_ENDPOINT_URL_S3, then run again")


def _explain_answer(error: BaseException, doing: str, bucket: str) -> PocketVLMError | KeyMissing:
    code = code_of(error)
    status = status_of(error)
    message = _answer(error).get("Error", {}).get("Message", "")
    if code == "NoSuchBucket":
        return BucketMissing(f"{doing}: there is no bucket {bucket}; create it, or correct POCKETVLM_STORE")
    if code in REFUSED or status in (401, 403):
        return CredentialsError(f"{doing}: {code}: {REFUSED.get(code, REFUSED['AccessDenied'])}")
    passing = code in PASSING or status in (409, 429) or status >= 500
    if not passing and (code == "NoSuchKey" or status == 404):
        return KeyMissing(doing)
    if passing:
        return StoreUnavailable(f"{doing}: the store answers {status} {code} ({message}); check the store's health, "
                                "then run again")
    return UserError(f"{doing}: the store answers {status} {code} ({message}); check POCKETVLM_STORE, "
                     "AWS_ENDPOINT_URL_S3 and AWS_REGION")
