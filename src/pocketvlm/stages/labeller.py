"""The labeller: images and labels of a source -> a dataset on the device's canvas, split, with what it refused.

Every image is decoded once. Where the run file names a teacher, it is asked while the next images are prepared. What cannot be
used is quarantined with a reason; only a set that cannot be split at all fails the stage. Preparing and asking are shared
between processes; verdicts, copies, splits and Parquet are the work of whoever ends last.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pocketvlm.artifacts.corrections import Corrections, read_corrections
from pocketvlm.artifacts.dataset import Quarantined, write_quarantine
from pocketvlm.environment import Shard
from pocketvlm.errors import DataError, UserError
from pocketvlm.run_file import Recipe
from pocketvlm.sources.images import strict_pillow
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, Problem, Record, SourceReader
from pocketvlm.stages.labelling.gathering import Enough, Gathering, Selection, gather
from pocketvlm.stages.labelling.panel import TeacherPanel, open_panel
from pocketvlm.stages.labelling.pieces import PieceWriter
from pocketvlm.stages.labelling.prepared import JPEG_QUALITY, Prepared, prepare
from pocketvlm.stages.labelling.rows import sort_out, write_rows
from pocketvlm.stages.labelling.watch import Watch, cost_lines, label_lines
from pocketvlm.stages.sharing import Piece, Settle
from pocketvlm.stages.stage import Made, Work
from pocketvlm.student import variants
from pocketvlm.student.tasks import TaskKind, kind_of
from pocketvlm.teacher.question import TeacherQuestion

KIND = "datasets"
INPUTS: tuple[str, ...] = ()
SHARED = True

In = TypeVar("In")
Out = TypeVar("Out")


def settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """All that determines the dataset. Paths do not: the id follows the content that they lead to.

    Reads every byte of a local source once, and asks no server. Raises as `open_source` and `read_corrections` do.
    """
    labeller, task, device = recipe.labeller, recipe.task, recipe.device
    names = ("min_confidence", "min_agreement", "per_class", "balance", "max_images", "max_cost_usd", "near_copies", "max_pixels")
    values: dict[str, Any] = {
        "source": labeller.source.model_dump(mode="json", exclude={"path", "images", "fetch", "lite"}),
        "content": open_source(labeller.source, _context(recipe, folder)).fingerprint(),
        **_asked(kind_of(task)),
        "canvas_px": device.canvas_px,
        "split": labeller.split.model_dump(mode="json"),
        **{name: getattr(labeller, name) for name in names},
    }
    if device.canvas_px is None:  # only then it decides which images are too thin
        values["longest_edge_px"] = device.longest_edge_px
    if own := variants.settings(task):
        values["variants"] = own
    for name in ("teacher", "second_teacher"):
        if teacher := getattr(labeller, name):
            question = TeacherQuestion(teacher, task, folder, where=f"run.labeller.{name}")
            price = teacher.price and teacher.price.model_dump(exclude=set() if teacher.way == "batch" else {"batch_share"})
            values[name] = {"question": question.key, "prompt_sha256": question.prompt_sha256, "image_px": teacher.image_px,
                            "jpeg_quality": JPEG_QUALITY, "votes": teacher.votes, "price": price}  # fmt: skip
    if corrections := _corrections(recipe, folder):
        values["corrections"] = corrections.fingerprint()
    return values


def _asked(kind: TaskKind) -> dict[str, Any]:
    """What of the task shapes questions and answers; how they are laid out in a prompt does not concern the dataset."""
    of_prompts = ("format", "system", "prompt_template")
    return {key: value for key, value in kind.settings().items() if key not in of_prompts}


def make(work: Work) -> Made | None:
    """Writes the Parquet shards and quarantine.jsonl.

    Raises DataError when the splits cannot be filled, TeacherUnavailable and SourceUnavailable to be started again.
    """
    recipe, labeller = work.recipe, work.recipe.labeller
    _refuse_shared_caps(work)
    source = open_source(labeller.source, _context(recipe, work.recipe_folder, work))
    corrections = _corrections(recipe, work.recipe_folder)
    total = min(len(source), labeller.max_images or len(source))
    with open_panel(work) as panel:
        capped = labeller.per_class is not None or labeller.max_cost_usd is not None
        enough = Enough(Selection(recipe, corrections), panel.recall if panel else None) if capped else None
        shares = work.desk.share(
            lambda shard: _pieces(source, total, shard, panel, work), ahead=panel.ahead if panel else 0, enough=enough
        )
    if shares is None:
        return None
    start = time.perf_counter()
    gathering = gather(shares, total, recipe, corrections)
    groups, refused = sort_out(gathering, recipe)
    gathering.quarantine += refused
    _report(gathering, total, work)
    if corrections and (unknown := corrections.unknown(gathering.tally.seen)):
        work.progress.warn(f"run.labeller.corrections: {unknown} of {len(corrections)} are of images that are not among those "
                           "looked at and usable; they change nothing")  # fmt: skip
    written = write_rows(gathering, groups, work)
    costs = gathering.tally.costs(sum(map(len, groups)), panel.budget.spent_usd) if panel else None
    for line in [*label_lines(labeller, written["counts"]), *(cost_lines(costs) if costs else ())]:
        work.progress.line(line)
    write_quarantine(work.folder, gathering.quarantine)
    seconds = max(share.seconds for share in shares) + time.perf_counter() - start
    return Made(
        facts={**written, **_facts(gathering, groups, recipe)},
        measurements={
            "seconds": seconds,
            "images_per_second": gathering.total / seconds,
            "share_seconds": [share.seconds for share in shares],
            **({"costs": costs} if costs else {}),
        },
        versions={package: version(package) for package in ("numpy", "pillow", "pyarrow")},
    )


def _facts(gathering: Gathering, groups: list[list[int]], recipe: Recipe) -> dict[str, Any]:
    copies = [group for group in groups if len(group) > 1]
    return {
        "classes": list(recipe.task.classes),
        "images_total": gathering.total,
        "images_used": sum(map(len, groups)),
        "near_copy_groups": len(copies),
        "near_copy_images": sum(map(len, copies)),
        "largest_near_copy_group": max(map(len, copies), default=0),
        "quarantine": dict(sorted(Counter(item.reason for item in gathering.quarantine).items())),
        "source": recipe.labeller.source.kind,
        **gathering.tally.facts(),
    }


def _context(recipe: Recipe, folder: Path, work: Work | None = None) -> Context:
    known = Context(folder, list(recipe.task.classes), recipe.labeller.teacher is None, fields=recipe.task.fields)
    if work is None:
        return known
    return replace(known, environment=work.environment, store=work.store, progress=work.progress)


def _corrections(recipe: Recipe, folder: Path) -> Corrections | None:
    path = recipe.labeller.corrections
    return None if path is None else read_corrections(folder / path, list(recipe.task.classes), recipe.task.fields)


def _refuse_shared_caps(work: Work) -> None:
    caps = [name for name in ("per_class", "max_cost_usd") if getattr(work.recipe.labeller, name) is not None]
    if work.desk.shard.count > 1 and caps:
        raise UserError(f"run.labeller.{caps[0]}: only a labeller that does all of the work can keep to it, and "
                        f"POCKETVLM_SHARDS is {work.desk.shard.count}; remove one of the two")  # fmt: skip


def _pieces(source: SourceReader, total: int, shard: Shard, panel: TeacherPanel | None, work: Work) -> list[Piece]:
    own = range(total)[shard.index :: shard.count]
    records = panel.piece_records if panel else source.PIECE_RECORDS
    watch = _watch(len(own), panel, work)
    return [
        # The name says which records: should the number of a piece change, nobody takes an old piece for a new one.
        Piece(f"{own[first]:08d}-{len(own[first : first + records])}",
              partial(_prepare, source, own, range(first, min(first + records, len(own))), watch, panel, work))
        for first in range(0, len(own), records)
    ]  # fmt: skip


def _watch(total: int, panel: TeacherPanel | None, work: Work) -> Watch:
    labeller = work.recipe.labeller
    teachers = labeller.teachers
    priced = all(teacher.price is not None for teacher in teachers)
    return Watch(work.progress, total, panel.clients if panel else (), [teacher.votes for teacher in teachers], priced)


def _prepare(
    source: SourceReader, own: range, of_own: range, watch: Watch, panel: TeacherPanel | None, work: Work, folder: Path
) -> Settle | None:
    """Fills a piece with some records of a share, and shows them to the teachers; `watch` goes on over all pieces."""
    places = own[of_own.start : of_own.stop]
    jpegs = panel.spool(f"{places[0]:08d}") if panel else None
    with (
        strict_pillow(work.recipe.labeller.max_pixels),
        ThreadPoolExecutor(1) as large,
        PieceWriter(folder) as piece,
    ):

        def step(record: Record) -> Prepared | Quarantined:
            made = prepare(record, work.recipe, large)
            return Quarantined(record.source_id, made.reason, made.detail) if isinstance(made, Problem) else made

        made = _in_order(step, source.records(places), work.environment.thread_count())
        for done, (place, item) in enumerate(zip(places, made, strict=True), start=of_own.start + 1):
            piece.add(item)
            if jpegs and not isinstance(item, Quarantined):
                jpegs.add(place, item.jpegs)
            watch.prepared(done, item.reason if isinstance(item, Quarantined) else None)
    return panel.pose(folder, jpegs, watch).settle if panel and jpegs else None


def _in_order(step: Callable[[In], Out], items: Iterable[In], threads: int) -> Iterator[Out]:
    """Results in the order of `items`. Pillow works outside the interpreter lock; few items wait in memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Out]] = deque()
        for item in items:
            waiting.append(pool.submit(step, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _report(gathering: Gathering, offered: int, work: Work) -> None:
    """Lines on the log, of a source that has `offered` images; raises DataError when nothing is left."""
    quarantine, total = gathering.quarantine, gathering.total
    counts = Counter(item.reason for item in quarantine)
    text = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    if len(quarantine) == total:
        example = f"; first: {min(quarantine).source_id}: {min(quarantine).detail}" if quarantine else ""
        raise DataError(f"run.labeller.source: none of the source's {total} images can be used: {text or 'it is empty'}{example}"
                        "; put images there, or name another source")  # fmt: skip
    if total < offered:
        work.progress.line(f"enough after {total} of the source's {offered} images")
    if quarantine:
        work.progress.warn(f"quarantined {len(quarantine)} of {total}: {text}")
