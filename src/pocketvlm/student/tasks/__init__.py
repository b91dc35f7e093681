"""The kinds of tasks, one file each, and which one a task block is. No torch."""

from pocketvlm.run_file import Task
from pocketvlm.student.tasks.extract import Extraction
from pocketvlm.student.tasks.kind import PROMPT_FORMAT, Choice, Said, TaskKind
from pocketvlm.student.tasks.label import Labelling
from pocketvlm.student.tasks.reasoning import Reasoning

__all__ = ["PROMPT_FORMAT", "Choice", "Extraction", "Labelling", "Reasoning", "Said", "TaskKind", "kind_of"]


def kind_of(task: Task) -> TaskKind:
    """What this task asks, and what its answers mean."""
    if task.kind == "extract":
        return Extraction(task)
    return Reasoning(task) if task.answer == "reasoning" else Labelling(task)
