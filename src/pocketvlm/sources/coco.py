"""Photographs of COCO 2017, chosen by what people have marked in them, downloaded one by one.

The order in which they are chosen follows from the annotations and the settings alone, and a larger `limit` only adds to its
end: whoever needs more images goes on where he was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from urllib.parse import quote, urlsplit

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.run_file import CocoSource
from pocketvlm.sources.coco_index import CocoImage, CocoIndex, is_remote, load_index
from pocketvlm.sources.record import Context, Problem, Record, SourceReader, hint
from pocketvlm.sources.turns import in_turn, untaken
from pocketvlm.sources.web.fetch import Fetcher

CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light", "fire hydrant",
    "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat",
    "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave",
    "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""All 80, in the order of their ids: a typing error is found before anything is downloaded."""
LICENCES = {1: "BY-NC-SA", 2: "BY-NC", 3: "BY-NC-ND", 4: "BY", 5: "BY-SA", 6: "BY-ND", 7: "no known restrictions",
            8: "US government"}  # fmt: skip
"""Of COCO 2017. What a record says comes from the annotations' own table."""
IMAGES = {"train": 118_287, "val": 5_000}
IMAGE_BYTES = 163_000
"""Mean size of a file of train2017: 19.3 GB for all."""
FLICKR_PHOTO = re.compile(r"/(\d+)_[0-9a-f]+(?:_[a-z])?\.\w+$")


class Coco(SourceReader):
    """Images that have one of the wanted licences, from the categories in turn."""

    PIECE_RECORDS = 64

    def __init__(self, source: CocoSource, context: Context) -> None:
        """Raises RunFileError: an unknown class, category or licence, annotations that are not there, no teacher."""
        if problems := list(_problems(source, context)):
            raise RunFileError("\n".join(problems))
        self._source = source
        self._context = context
        # A mapping has no order once it has been through JSON, the task's classes have one.
        named = [(name, source.categories[name]) for name in context.classes if name in source.categories]
        self._wanted: list[tuple[str, list[str]]] = named or [(name, [name]) for name in CATEGORIES]

    def fingerprint(self) -> str:
        source = self._source
        decides = [source.split, source.limit, self._wanted, sorted(set(source.licences)), source.seed, source.annotations_sha256,
                   source.images_url]  # fmt: skip
        return hashlib.sha256(json.dumps(["coco", 1, *decides]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._chosen)

    def records(self, places: range) -> Iterator[Record]:
        chosen = [self._chosen[place] for place in places]
        urls = [self._url(image) for image in chosen]
        with Fetcher(self._source.fetch, {urlsplit(self._source.images_url).netloc}) as fetcher:
            for image, url, data in zip(chosen, urls, fetcher.get_all(urls), strict=True):
                source_id = f"coco/{self._source.split}/{image.file_name.rpartition('.')[0]}"
                if isinstance(data, Problem):
                    yield Record(source_id, problem=data)
                else:
                    yield Record(source_id, data, url=url, author=_author(image), licence=self._index.licences[image.licence])

    def expected(self) -> int:
        return self._source.limit

    def plan_lines(self) -> list[str]:
        """What is taken, under which licences, and what is downloaded for it."""
        source = self._source
        of = (f"from {sum(len(own) for _, own in self._wanted)} categories of {len(self._wanted)} classes in turn"
              if source.categories else "from all 80 categories in turn")  # fmt: skip
        licences = ", ".join(f"{id} {LICENCES[id]}" for id in sorted(set(source.licences)))
        lines = [
            f"up to {source.limit} of COCO's {IMAGES[source.split]:,} {source.split} images, {of}",
            f"licences {licences}; that of each image is in the dataset",
            f"downloads about {source.limit * IMAGE_BYTES / 1e6:,.0f} MB of images",
        ]
        if is_remote(source.annotations):
            lines[-1] += "; and the annotations, 253 MB, once for all runs"
        return lines

    def _url(self, image: CocoImage) -> str:
        return f"{self._source.images_url.rstrip('/')}/{self._source.split}2017/{quote(image.file_name, safe='')}"

    @cached_property
    def _index(self) -> CocoIndex:
        index = load_index(self._source, self._context)
        for name in {name for _, own in self._wanted for name in own} - set(index.categories) if self._source.categories else ():
            raise DataError(f"run.labeller.source.annotations: they have no category {name}; name COCO's own file")
        if unknown := set(self._source.licences) - set(index.licences):
            raise DataError(f"run.labeller.source.annotations: they have no licence {min(unknown)}; name COCO's own file")
        return index

    @cached_property
    def _chosen(self) -> Sequence[CocoImage]:
        chosen = list(islice(self._order(), self._source.limit))
        if len(chosen) < self._source.limit:
            self._context.progress.line(f"COCO has {len(chosen)} images of these categories and licences, fewer than limit "
                                        f"{self._source.limit}; more categories or licences give more")  # fmt: skip
        return chosen

    def _order(self) -> Iterator[CocoImage]:
        """All images that may be taken, each once."""
        index, source = self._index, self._source
        free = [image for image in index.images if image.licence in source.licences]
        free.sort(key=lambda image: hashlib.sha256(f"{source.seed}/{image.id}".encode()).digest())
        queues: dict[int, list[CocoImage]] = {id: [] for id in index.categories.values()}
        for image in free:
            for category in image.categories:
                queues[category].append(image)
        wanted = self._wanted if source.categories else [(name, [name]) for name in index.categories]
        taken: set[str] = set()

        def queue(name: str) -> Iterator[CocoImage]:
            return untaken(((image.file_name, image) for image in queues[index.categories[name]]), taken)

        yield from in_turn([in_turn([queue(name) for name in own]) for _, own in wanted])
        if not source.categories:
            yield from (image for image in free if not image.categories)


def _author(image: CocoImage) -> str | None:
    """COCO names no photographers, but where each photograph lies at Flickr, whose page of it does."""
    if not image.flickr_url:
        return None
    found = FLICKR_PHOTO.search(image.flickr_url)
    page = f"https://www.flickr.com/photo.gne?id={found[1]}" if found else image.flickr_url
    return f"the photographer named at {page}"


def _problems(source: CocoSource, context: Context) -> Iterator[str]:
    if context.labelled:
        yield "run.labeller.source: images of coco have no labels of your classes; add run.labeller.teacher"
    for name, categories in source.categories.items():
        key = f"run.labeller.source.categories.{name}"
        if name not in context.classes:
            yield f"{key}: {name} is not in run.task.classes{hint(name, context.classes)}"
        if not categories:
            yield f"{key}: names no category; add one, or remove the class"
        for category in categories:
            if category not in CATEGORIES:
                yield f"{key}: COCO has no category {category}{hint(category, CATEGORIES)}"
    for licence in source.licences:
        if licence not in LICENCES:
            yield f"run.labeller.source.licences: COCO has no licence {licence}; its ids are 1 to 8"
    for key in ("annotations", "images_url"):
        if (address := getattr(source, key)).startswith("http://") and not source.fetch.allow_http:
            yield (f"run.labeller.source.{key}: {address} is plain http; write https, or set run.labeller.source.fetch."
                   "allow_http to true")  # fmt: skip
    if not is_remote(source.annotations) and not (context.folder / source.annotations).is_file():
        yield (f"run.labeller.source.annotations: {source.annotations} is no file; name COCO's zip or one of its "
               "instances_*2017.json, relative to the run file, or an address")  # fmt: skip
