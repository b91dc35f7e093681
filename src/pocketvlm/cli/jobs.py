"""Commands that the chart starts."""

from __future__ import annotations

import argparse

from pocketvlm.environment import Environment


def conduct(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm conduct`."""
    del environment
    if options.check:
        from pocketvlm.cluster.check import check

        print(check(options.plan))
        return 0
    from pocketvlm.cluster.conductor import conduct

    conduct(options.plan)
    return 0


def bucket(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm bucket`."""
    from pocketvlm.artifacts.bucket import check_bucket, make_bucket
    from pocketvlm.progress import Progress

    progress = Progress("bucket")
    work = check_bucket if options.check else make_bucket
    progress.line(work(environment, options.deadline_s, progress.line))
    return 0
