"""The door: parse, call one function, turn errors into exit codes."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from pocketvlm.cli import jobs, releases, runs
from pocketvlm.cli.parser import build_parser
from pocketvlm.environment import calm_idle_threads, read_environment
from pocketvlm.errors import PocketVLMError
from pocketvlm.interrupt import ends_on_sigterm

COMMANDS = {
    "plan": runs.plan, "run": runs.run, "stage": runs.stage, "report": runs.report, "review": runs.review,
    "pull": releases.pull, "verify": releases.verify, "predict": releases.predict, "demo": releases.demo,
    "compare": releases.compare, "publish": releases.publish, "doctor": releases.doctor,
    "conduct": jobs.conduct, "bucket": jobs.bucket,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with ends_on_sigterm():
            calm_idle_threads()
            environment = read_environment()
            if options.store:
                environment = environment.model_copy(update={"store": options.store})
            code = COMMANDS[options.command](options, environment)
            if sys.stdout is not None:  # it is None where it was closed before we began
                sys.stdout.flush()
            return code
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer
        return 0
    except KeyboardInterrupt:
        print("\nerror: interrupted; what is saved stays, run the same command again", file=sys.stderr)
        return 130


def _nobody_reads() -> bool:
    """Whether the reader of our standard output has ended: `| head` has read enough. Else it was another pipe that broke."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # POLLERR is always told
    return any(event & select.POLLERR for _, event in poll.poll(0))
