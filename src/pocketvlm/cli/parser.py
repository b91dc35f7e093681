"""What can be typed: the commands, their arguments and help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

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


Add = Callable[[str, str], argparse.ArgumentParser]
"""Name and help of a command -> its parser."""


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

    _on_run_files(add)
    _on_releases(add)
    _to_show(add)
    _of_the_chart(add)
    return parser


def _on_run_files(add: Add) -> None:
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


def _on_releases(add: Add) -> None:
    pull = add("pull", "fetch a release, checking every sha256; goes on where it stopped")
    pull.add_argument("name", metavar="NAME", help="name of the release")
    pull.add_argument("--version", metavar="V", help="default: the latest")
    pull.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the files")
    pull.add_argument("--types", metavar="T,T", help="only these GGUF types, for example q8_0,q4_0; default: all")
    verify = add("verify", "check a pulled release: every sha256, then the golden images on llama.cpp")
    verify.add_argument("folder", type=Path, metavar="DIR", help="folder of a pulled release")
    predict = add("predict", "ask a released model about images, on llama.cpp as an app does")
    predict.add_argument("release", metavar="NAME_OR_DIR", help="a release of the store, or a folder with a pulled one")
    predict.add_argument("images", nargs="+", metavar="IMAGE", type=Path, help="image files, and folders of them")
    predict.add_argument("--format", choices=("table", "jsonl", "csv"),
                         help="default: by the name of --output, else a table on a terminal, JSON lines elsewhere")  # fmt: skip
    predict.add_argument("--output", type=Path, metavar="FILE", help="instead of standard output")
    demo = add("demo", "serve a page on which people try a released model with camera and upload, beside its base")
    demo.add_argument("release", metavar="NAME_OR_DIR", help="a release of the store, or a folder with a pulled one")
    demo.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on; default: this machine alone")
    demo.add_argument("--port", type=int, default=7860, metavar="P", help="default: 7860; 0: any free one")
    demo.add_argument("--no-base", action="store_true", help="without the model before its training")
    demo.add_argument("--open", action="store_true", help="open it in the browser")
    for command, kind in ((predict, "the one that was measured as the most accurate"), (demo, "all of the release")):
        command.add_argument("--type", metavar="T", help=f"GGUF type, for example q8_0; default: {kind}")
        command.add_argument("--version", metavar="V", help="default: the latest")


def _to_show(add: Add) -> None:
    compare = add("compare", "write a page that holds finished runs beside each other: settings, data, numbers, each image")
    compare.add_argument("runs", nargs="+", metavar="RUN",
                         help="run file, id of a run, or release (NAME or NAME/VERSION); the first is the baseline")  # fmt: skip
    compare.add_argument("--to", type=Path, metavar="FILE", help="where; default: below .pocketvlm/comparisons")
    compare.add_argument("--open", action="store_true", help="open it in the browser")
    publish = add("publish", "show what of a release would go to the Hugging Face Hub; with --yes it goes there, resumably")
    publish.add_argument("name", metavar="NAME", help="name of the release")
    publish.add_argument("--to", required=True, metavar="hub:OWNER/NAME", help="repository of the model; its dataset: NAME-data")
    publish.add_argument("--version", metavar="V", help="default: the latest")
    publish.add_argument("--parts", default="gguf,merged,dataset", metavar="P,P",
                         help="what the repositories shall hold; default: gguf,merged,dataset")  # fmt: skip
    publish.add_argument("--private", action="store_true", help="make private repositories")
    publish.add_argument("--licence", metavar="ID", help="the Hub's id of the model's licence; default: that of its base")
    publish.add_argument("--non-commercial", action="store_true", help="pass on images that may not be used commercially, too")
    publish.add_argument("--yes", action="store_true", help="upload; without it nothing is sent")
    doctor = add("doctor", "list the known faults of a GGUF pair, a checkpoint folder or a pulled release, anyone's")
    doctor.add_argument("paths", nargs="+", metavar="PATH", type=Path, help="a folder, or the files of a pair")
    doctor.add_argument("--checkpoint", type=Path, metavar="DIR", help="what the pair was made of: its weights are compared, too")
    doctor.add_argument("--base", type=Path, metavar="PATH", help="pair or checkpoint before training: whose mmproj is it?")
    doctor.add_argument("--json", action="store_true", help="as JSON")


def _of_the_chart(add: Add) -> None:
    conduct = add("conduct", "release the Jobs of a run on Kubernetes one after the other; the chart starts this")
    conduct.add_argument("plan", metavar="PLAN", type=Path, help="conductor.json, as the chart writes it")
    conduct.add_argument("--check", action="store_true", help="only read the plan and look whether all rights are there")
    bucket = add("bucket", "wait for the store and make its bucket if it is missing; done again, it does nothing")
    bucket.add_argument("--check", action="store_true", help="make nothing; exit 2 unless the bucket is there and fit for use")
    bucket.add_argument("--deadline-s", type=float, default=120.0, metavar="S", help="wait this long for the store; default: 120")
