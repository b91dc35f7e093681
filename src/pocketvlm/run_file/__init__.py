"""The run file as models: every key, its unit, its default. A run file is a Helm values file; its `run:` block is read here.

The docstring under a field is its documentation (docs/run-file.md is generated from it).
"""

from pocketvlm.run_file.labeller import Labeller, Price, Split, Teacher
from pocketvlm.run_file.reader import check_run_file, read_recipe, read_run_file
from pocketvlm.run_file.recipe import Evaluator, Gates, GgufType, Quantiser, Recipe, RunFile
from pocketvlm.run_file.source import (
    ArchiveSource,
    CocoSource,
    DigitsSource,
    Fetch,
    FolderSource,
    HubSource,
    KaggleSource,
    RecordsSource,
    Source,
    UnsplashSource,
)
from pocketvlm.run_file.task import Device, ExtractField, Question, Student, Task, is_hub_shaped, is_stored
from pocketvlm.run_file.trainer import Augment, EarlyStop, Part, Phase, Trackers, Trainer

__all__ = [
    "ArchiveSource",
    "Augment",
    "CocoSource",
    "Device",
    "DigitsSource",
    "EarlyStop",
    "Evaluator",
    "ExtractField",
    "Fetch",
    "FolderSource",
    "Gates",
    "GgufType",
    "HubSource",
    "KaggleSource",
    "Labeller",
    "Part",
    "Phase",
    "Price",
    "Quantiser",
    "Question",
    "Recipe",
    "RecordsSource",
    "RunFile",
    "Source",
    "Split",
    "Student",
    "Task",
    "Teacher",
    "Trackers",
    "Trainer",
    "UnsplashSource",
    "check_run_file",
    "is_hub_shaped",
    "is_stored",
    "read_recipe",
    "read_run_file",
]
