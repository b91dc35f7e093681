"""The error family. The class says who must act; its exit code says what Kubernetes does next.

PocketVLMError                 1   unexpected: try again within the backoff limit
├── UserError                  2   a person must change the run file or the environment
│   ├── RunFileError               a key of the run file is wrong
│   ├── CredentialsError           the store, the teacher or a source refused our keys, or there is none
│   ├── BucketMissing              the store has no such bucket
│   └── ConditionIgnored           the store ignores If-None-Match or If-Match: unsafe, refused
├── DataError                  3   the data is wrong; trying again gives the same
├── GateRefused                4   the model was measured and refused
├── Interrupted               75   stopped from outside after saving; start again to go on
├── StoreUnavailable           1   no connection, or the store answers 5xx: try again
├── HubUnavailable             1   the same of the Hugging Face Hub, or it asks to come back later (429)
├── SourceUnavailable          1   the same of a server of images
├── TeacherUnavailable         1   the same of the teacher
├── Corrupt                    1   bytes read do not match their sha256
└── ToolError                  1   a program that we started (llama.cpp) failed
"""

from __future__ import annotations


class PocketVLMError(Exception):
    """Base of everything that PocketVLM raises on purpose. The message says what, where, and what to do."""

    exit_code = 1


class UserError(PocketVLMError):
    """A person must change something before another try can succeed."""

    exit_code = 2


class RunFileError(UserError):
    """The run file is wrong; the message starts with the key's path."""


class CredentialsError(UserError):
    """A service refused our key, or we have none for it; the message names the service and the variable."""


class BucketMissing(UserError):
    """The bucket of `POCKETVLM_STORE` does not exist."""


class ConditionIgnored(UserError):
    """The store answered success to a conditional write that it had to refuse."""


class DataError(PocketVLMError):
    """The images or labels cannot make a dataset, or an artifact holds what it must not."""

    exit_code = 3


class GateRefused(PocketVLMError):
    """A gate of `evaluator.gates` failed; the message names each gate with both numbers."""

    exit_code = 4


class Interrupted(PocketVLMError):
    """SIGTERM or SIGINT arrived and the work so far is saved."""

    exit_code = 75


class StoreUnavailable(PocketVLMError):
    """The store did not answer, or answered with a server error, until the deadline."""


class HubUnavailable(PocketVLMError):
    """The Hugging Face Hub did not answer, answered with a server error, or asked to come back later."""


class SourceUnavailable(PocketVLMError):
    """A server of images did not answer, or answered with errors, until the deadline."""


class TeacherUnavailable(PocketVLMError):
    """The teacher did not answer, or answered with errors, until the deadline; or nothing but errors came at all."""


class Corrupt(PocketVLMError):
    """What was read is not what was written."""


class ToolError(PocketVLMError):
    """A program of the pinned llama.cpp failed; the message holds its last lines."""
