"""Opens a teacher of the run file."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from pocketvlm.artifacts.store import Store
from pocketvlm.progress import Progress
from pocketvlm.run_file import Task, Teacher
from pocketvlm.teacher.answers import Client
from pocketvlm.teacher.budget import Budget
from pocketvlm.teacher.journal import Journal
from pocketvlm.teacher.question import TeacherQuestion


def open_teacher(
    teacher: Teacher, task: Task, folder: Path, *, where: str, store: Store, scratch: Path, key: SecretStr | None, budget: Budget,
    progress: Progress,
) -> Client:  # fmt: skip
    """A client whose answers are journalled in `store`. Nothing is asked yet.

    `folder` is the run file's, `where` the key of the teacher in it; `scratch` a folder for files while it works. Raises
    RunFileError for a wrong prompt file, CredentialsError when OpenAI's endpoint is named and there is no key.
    """
    question = TeacherQuestion(teacher, task, folder, where=where)
    journal = Journal(store, question.key, scratch)
    if teacher.way == "batch":
        from pocketvlm.teacher.batch import BatchClient

        return BatchClient(teacher, question, journal, store=store, scratch=scratch, key=key, budget=budget, progress=progress)
    from pocketvlm.teacher.live import LiveClient

    return LiveClient(teacher, question, journal, key=key, budget=budget, progress=progress)
