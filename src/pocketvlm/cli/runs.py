"""Commands on a run file. Imports are in the functions, so that no command waits for what it does not need."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pocketvlm.environment import Environment
from pocketvlm.errors import GateRefused, PocketVLMError, UserError
from pocketvlm.run_file import read_run_file


def plan(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm plan`."""
    run_file = read_run_file(options.run_file)
    from pocketvlm.plan import plan

    print(plan(run_file, environment))
    return 0


def run(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm run`."""
    run_file = read_run_file(options.run_file)
    from pocketvlm.local import run
    from pocketvlm.report.files import summary, write_report

    try:
        artifacts = run(options.run_file, run_file, environment)
    except PocketVLMError as error:
        if error.exit_code == GateRefused.exit_code:
            print(f"report: {write_report(run_file, environment, None)}", file=sys.stderr)
        raise
    print(summary(run_file, artifacts["evaluator"], artifacts["quantiser"]))
    print(f"report: {write_report(run_file, environment, None)}")
    return 0


def stage(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm stage`."""
    run_file = read_run_file(options.run_file)
    from pocketvlm.artifacts.open import open_store
    from pocketvlm.metrics import serve
    from pocketvlm.progress import Progress
    from pocketvlm.stages.stage import run_stage

    progress = Progress(options.stage)
    if environment.metrics_port:
        serve(progress.metrics, environment.metrics_port, progress.warn)
    run_stage(options.stage, run_file, open_store(environment), environment, progress)
    return 0


def report(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm report`."""
    run_file = read_run_file(options.run_file)
    from pocketvlm.report.files import write_report

    return written("report", write_report(run_file, environment, options.to), options)


def review(options: argparse.Namespace, environment: Environment) -> int:
    """`pocketvlm review`."""
    run_file = read_run_file(options.run_file)
    if options.label_studio is None:
        from pocketvlm.review.page import write_review

        return written("review", write_review(run_file, environment, options.to, images=options.images), options)
    if options.to or options.open:
        raise UserError("--label-studio writes no page; remove --to and --open")
    from pocketvlm.review.label_studio import write_label_studio

    folder = write_label_studio(run_file, environment, options.label_studio, images=options.images)
    print(f"for Label Studio: {folder}/tasks.json to import, {folder}/labels.xml as the labelling interface")
    return 0


def written(what: str, page: Path, options: argparse.Namespace) -> int:
    """Says where a page is, and opens it if asked to."""
    print(f"{what}: {page}")
    if options.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0
