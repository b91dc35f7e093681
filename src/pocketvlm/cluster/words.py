"""Values, commands, codes and logs as a person who must act needs them written."""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.cluster.plan import ConductorPlan

LAST_LINES = 12
"""Lines of a log in the report of a failure, before the error and of the error."""

FINAL_CODES = (2, 3, 4)
"""Exit codes at which the Job fails without another try."""
MEANINGS = {
    1: "unexpected",
    2: "the run file or the environment is wrong",
    3: "the data is wrong",
    4: "a gate refused the model",
    75: "interrupted after saving its work",
    126: "the command in the image cannot be run",
    127: "the command is not in the image",
    128: "the container could not be started",
    134: "it aborted",
    137: "killed",
    139: "it crashed, segmentation fault",
    143: "stopped by SIGTERM before it could save",
}


def value(stage: str, key: str) -> str:
    """Path of a chart value of one stage."""
    return f"stages.{stage}.{key}"


def exit_meaning(code: int, reason: str = "") -> str:
    """`2: the run file or the environment is wrong`; `reason`: Kubernetes' own, where it says more than `Error`."""
    meaning = MEANINGS.get(code) or (f"ended by signal {code - 128}" if 128 < code < 160 else "unexpected")
    return f"{code}: {meaning}{f' ({reason})' if reason not in ('', 'Error', 'Completed') else ''}"


def split_log(log: str) -> tuple[list[str], list[str]]:
    """The lines before a stage's own error, and that error: from its last line that starts with `error: ` on."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    start = max((number for number, line in enumerate(lines) if line.startswith("error: ")), default=len(lines))
    return lines[:start][-LAST_LINES:], lines[start:][:LAST_LINES]


def last_line(log: str) -> str:
    """What a log ends with: the first line of the stage's own error if there is one."""
    before, said = split_log(log)
    return said[0] if said else (before[-1] if before else "")


@dataclass(frozen=True)
class Commands:
    """What a person types, complete with release and namespace."""

    release: str
    namespace: str

    @classmethod
    def of(cls, plan: ConductorPlan) -> Commands:
        """Those of a release."""
        return cls(plan.release, plan.namespace)

    def kubectl(self, rest: str) -> str:
        """Any command in the namespace."""
        return f"kubectl -n {self.namespace} {rest}"

    def logs(self, pod: str, container: str = "") -> str:
        """The whole log of one pod."""
        return self.kubectl(f"logs {pod}{f' -c {container}' if container else ''}")

    def follow(self, job: str) -> str:
        """The log of a Job as it is written."""
        return self.kubectl(f"logs -f job/{job}")

    def describe(self, kind: str, name: str) -> str:
        """State and Events of an object."""
        return self.kubectl(f"describe {kind} {name}")

    @property
    def again(self) -> str:
        """The way to another try."""
        return (f"helm uninstall {self.release} -n {self.namespace} --wait, then the same helm install: what was finished is "
                "found in the store and skipped")  # fmt: skip
