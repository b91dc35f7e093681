"""The door: parse, call one function, turn errors into exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pocketvlm.environment import Environment, calm_idle_threads, read_environment
from pocketvlm.errors import GateRefused, PocketVLMError, UserError
from pocketvlm.interrupt import ends_on_sigterm
from pocketvlm.run_file import RunFile, read_run_file, refuse_not_available

DESCRIPTION = """Images in, a small vision-language model for phones out: measured on llama.cpp as shipped."""
EPILOG = """\
exit codes: 0 done or already done; 2 the run file or the environment is wrong; 3 the data is wrong;
4 a gate refused the model; 75 interrupted after saving, run again; other: try again
conduct: 10 a stage failed; 11 its plan, its rights or the cluster's settings are wrong; 143 stopped

environment: POCKETVLM_STORE (a folder or s3://bucket/prefix), AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, HF_TOKEN (each also as NAME_FILE), POCKETVLM_SCRATCH, POCKETVLM_CACHE,
POCKETVLM_THREADS, LLAMA_CPP_HOME
of the labeller: OPENAI_API_KEY (the teacher's key, whatever its endpoint), POCKETVLM_SECOND_TEACHER_API_KEY,
UNSPLASH_ACCESS_KEY, KAGGLE_USERNAME, KAGGLE_KEY (the keys also as NAME_FILE), HF_ENDPOINT (a mirror of the Hub)
of `stage` alone: POCKETVLM_METRICS_PORT (serves /metrics there),
POCKETVLM_SHARDS with JOB_COMPLETION_INDEX (does one share of a labeller's or evaluator's work)
"""


def build_parser() -> argparse.ArgumentParser:
    """The commands and their help."""
    parser = argparse.ArgumentParser(
        prog="pocketvlm", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", metavar="URL", help="folder or s3://bucket/prefix; default: POCKETVLM_STORE, else .pocketvlm/store"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")

    plan = add("plan", "say what each stage of a run file will do, and refuse what cannot work")
    run = add("run", "run every stage on this machine, from images to a measured release")
    stage = add("stage", "run one stage; its inputs must be finished")
    stage.add_argument("stage", choices=("labeller", "trainer", "merger", "quantiser", "evaluator"), help="which one")
    report = add("report", "write the report of a finished run as one HTML file")
    review = add("review", "write a page on which a person checks labels in the browser, the least certain first")
    for command in (plan, run, stage, report, review):
        command.add_argument("run_file", metavar="RUN", type=Path, help="run file, for example jobs/digits.yaml")
    report.add_argument("--to", type=Path, metavar="FILE", help="where; default: .pocketvlm/reports/<run>.html")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    review.add_argument("--to", type=Path, metavar="FILE", help="where; default: .pocketvlm/reviews/<run>.html")
    review.add_argument("--images", type=int, default=100, metavar="N", help="how many; default: 100")
    review.add_argument("--label-studio", type=Path, metavar="DIR", help="instead, tasks.json and labels.xml for Label Studio")
    review.add_argument("--open", action="store_true", help="open it in the browser")
    pull = add("pull", "fetch a release, checking every sha256; goes on where it stopped")
    pull.add_argument("name", metavar="NAME", help="name of the release")
    pull.add_argument("--version", metavar="V", help="default: the latest")
    pull.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the files")
    pull.add_argument("--types", metavar="T,T", help="only these GGUF types, for example q8_0,q4_0; default: all")
    verify = add("verify", "check a pulled release: every sha256, then the golden images on llama.cpp")
    verify.add_argument("folder", type=Path, metavar="DIR", help="folder of a pulled release")
    conduct = add("conduct", "release the Jobs of a run on Kubernetes one after the other; the chart starts this")
    conduct.add_argument("plan", metavar="PLAN", type=Path, help="conductor.json, as the chart writes it")
    conduct.add_argument("--check", action="store_true", help="only read the plan and look whether all rights are there")
    bucket = add("bucket", "wait for the store and make its bucket if it is missing; done again, it does nothing")
    bucket.add_argument("--check", action="store_true", help="make nothing; exit 2 unless the bucket is there and fit for use")
    bucket.add_argument("--deadline-s", type=float, default=120.0, metavar="S", help="wait this long for the store; default: 120")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with ends_on_sigterm():
            calm_idle_threads()
            environment = read_environment()
            if options.store:
                environment = environment.model_copy(update={"store": options.store})
            return _command(options, environment)
    except PocketVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nerror: interrupted; what is saved stays, run the same command again to go on", file=sys.stderr)
        return 130


def _command(options: argparse.Namespace, environment: Environment) -> int:
    # Imports are here so that `--help` and `pull` do not wait for what they do not need.
    if options.command == "pull":
        return _pull(options, environment)
    if options.command == "verify":
        return _verify(options.folder, environment)
    if options.command == "conduct":
        return _conduct(options)
    if options.command == "bucket":
        return _bucket(options, environment)
    run_file = read_run_file(options.run_file)
    if options.command == "plan":
        from pocketvlm.plan import plan

        print(plan(run_file, environment))
        return 0
    refuse_not_available(run_file.run)
    if options.command == "run":
        return _run(options.run_file, run_file, environment)
    if options.command == "stage":
        return _stage(options.stage, run_file, environment)
    if options.command == "review":
        return _review(options, run_file, environment)
    return _report(options, run_file, environment)


def _stage(name: str, run_file: RunFile, environment: Environment) -> int:
    from pocketvlm.artifacts.open import open_store
    from pocketvlm.metrics import serve
    from pocketvlm.progress import Progress
    from pocketvlm.stages.stage import run_stage

    progress = Progress(name)
    if environment.metrics_port:
        serve(progress.metrics, environment.metrics_port, progress.warn)
    run_stage(name, run_file, open_store(environment), environment, progress)
    return 0


def _run(path: Path, run_file: RunFile, environment: Environment) -> int:
    from pocketvlm.local import run
    from pocketvlm.report.files import summary, write_report

    try:
        artifacts = run(path, run_file, environment)
    except PocketVLMError as error:
        if error.exit_code == GateRefused.exit_code:
            print(f"report: {write_report(run_file, environment, None)}", file=sys.stderr)
        raise
    print(summary(run_file, artifacts["evaluator"], artifacts["quantiser"]))
    print(f"report: {write_report(run_file, environment, None)}")
    return 0


def _report(options: argparse.Namespace, run_file: RunFile, environment: Environment) -> int:
    from pocketvlm.report.files import write_report

    return _written("report", write_report(run_file, environment, options.to), options)


def _review(options: argparse.Namespace, run_file: RunFile, environment: Environment) -> int:
    if options.label_studio is None:
        from pocketvlm.review.page import write_review

        return _written("review", write_review(run_file, environment, options.to, images=options.images), options)
    if options.to or options.open:
        raise UserError("--label-studio writes no page; remove --to and --open")
    from pocketvlm.review.label_studio import write_label_studio

    folder = write_label_studio(run_file, environment, options.label_studio, images=options.images)
    print(f"for Label Studio: {folder}/tasks.json to import, {folder}/labels.xml as the labelling interface")
    return 0


def _written(what: str, page: Path, options: argparse.Namespace) -> int:
    print(f"{what}: {page}")
    if options.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def _pull(options: argparse.Namespace, environment: Environment) -> int:
    from pocketvlm.artifacts.open import open_store
    from pocketvlm.artifacts.pull import pull

    types = options.types.split(",") if options.types else None
    release = pull(open_store(environment, read_only=True), options.name, options.version, options.to, types)
    print(f"{release.name} {release.version} is in {options.to}")
    return 0


def _conduct(options: argparse.Namespace) -> int:
    if options.check:
        from pocketvlm.cluster.check import check

        print(check(options.plan))
        return 0
    from pocketvlm.cluster.conductor import conduct

    conduct(options.plan)
    return 0


def _verify(folder: Path, environment: Environment) -> int:
    from pocketvlm.llamacpp.toolchain import find_toolchain
    from pocketvlm.verify import verify

    print(verify(folder, find_toolchain(environment), environment.thread_count()))
    return 0


def _bucket(options: argparse.Namespace, environment: Environment) -> int:
    from pocketvlm.artifacts.bucket import check_bucket, make_bucket
    from pocketvlm.progress import Progress

    progress = Progress("bucket")
    work = check_bucket if options.check else make_bucket
    progress.line(work(environment, options.deadline_s, progress.line))
    return 0
