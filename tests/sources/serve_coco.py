"""COCO 2017 as its bucket lays it out, small and drawn: `python tests/sources/serve_coco.py --port 0 --images 200`.

`/annotations/annotations_trainval2017.zip`, `/train2017/000000000009.jpg`, `/val2017/...`. The same arguments give the same
annotations. Prints its address, then the settings that a run file needs, as JSON.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fixture_http import PALETTE, Answer, FixtureServer, arguments, draw, plant

CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog",
    19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella",
    31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite",
    39: "baseball bat", 40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle",
    46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich",
    55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch",
    64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip
"""With COCO's holes."""
LICENCES = (
    ("Attribution-NonCommercial-ShareAlike License", "http://creativecommons.org/licenses/by-nc-sa/2.0/"),
    ("Attribution-NonCommercial License", "http://creativecommons.org/licenses/by-nc/2.0/"),
    ("Attribution-NonCommercial-NoDerivs License", "http://creativecommons.org/licenses/by-nc-nd/2.0/"),
    ("Attribution License", "http://creativecommons.org/licenses/by/2.0/"),
    ("Attribution-ShareAlike License", "http://creativecommons.org/licenses/by-sa/2.0/"),
    ("Attribution-NoDerivs License", "http://creativecommons.org/licenses/by-nd/2.0/"),
    ("No known copyright restrictions", "http://flickr.com/commons/usage/"),
    ("United States Government Work", "http://www.usa.gov/copyright.shtml"),
)
SHARES = (28, 18, 15, 17, 11, 8, 1, 2)
"""Percent of images under each, about as in COCO."""
ZIP = "/annotations/annotations_trainval2017.zip"


def annotations(images: list[tuple[int, int, list[int]]], split: str = "train", *, flickr: bool = True) -> dict[str, Any]:
    """The content of an instances file, in COCO's order of keys; an image is its id, licence, and categories."""
    return {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": url, "id": id, "name": name} for id, (name, url) in enumerate(LICENCES, start=1)],
        "images": [
            {"license": licence, "file_name": f"{id:012d}.jpg", "coco_url": f"http://images.cocodataset.org/{split}2017/{id:012d}.jpg",
             "height": 240, "width": 320, "date_captured": "2013-11-14 17:02:52",
             "flickr_url": f"http://farm7.staticflickr.com/6116/{6255196340 + id}_da26cf2c9e_z.jpg" if flickr else "", "id": id}
            for id, licence, _ in images
        ],
        "annotations": [
            {"segmentation": [[10.5, 20.25, 60.0, 20.25, 60.0, 90.75, 10.5, 90.75]], "area": 3489.75, "iscrowd": 0,
             "image_id": id, "bbox": [10.5, 20.25, 49.5, 70.5], "category_id": category, "id": 1000 * id + place}
            for id, _, categories in images for place, category in enumerate(categories)
        ],
        "categories": [{"supercategory": "thing", "id": id, "name": name} for id, name in CATEGORIES.items()],
    }  # fmt: skip


def zipped(by_split: dict[str, dict[str, Any]]) -> bytes:
    """COCO's zip: the same bytes for the same content."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for split, content in by_split.items():
            member = zipfile.ZipInfo(f"annotations/instances_{split}2017.json", (2017, 9, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, json.dumps(content))
    return file.getvalue()


def invent(number: int, seed: str) -> list[tuple[int, int, list[int]]]:
    """Images with up to four categories each, one in twelve with none, ids with holes."""
    chance = random.Random(seed)
    made, id = [], 0
    for _ in range(number):
        id += chance.randrange(1, 12)
        licence = chance.choices(range(1, 9), SHARES)[0]
        categories = chance.sample(sorted(CATEGORIES), chance.randrange(1, 5)) if chance.randrange(12) else []
        made.append((id, licence, sorted(categories)))
    return made


class CocoServer(FixtureServer):
    """`images` of the train split, a fifth as many of val."""

    def __init__(self, images: int = 200, host: str = "127.0.0.1", port: int = 0, reached_as: str = "",
                 content: dict[str, list[tuple[int, int, list[int]]]] | None = None) -> None:  # fmt: skip
        super().__init__(host, port, reached_as)
        self.content = content or {"train": invent(images, "train"), "val": invent(max(1, images // 5), "val")}
        self.zip = zipped({split: annotations(own, split) for split, own in self.content.items()})
        self.sha256 = hashlib.sha256(self.zip).hexdigest()
        self._marked = {f"/{split}2017/{id:012d}.jpg": categories
                        for split, own in self.content.items() for id, _, categories in own}  # fmt: skip
        self.image = functools.lru_cache(maxsize=1000)(self._draw)

    def answer(self, path: str, query: str, headers: dict[str, str]) -> Answer:
        if path == ZIP:
            return Answer(200, self.zip, {"Content-Type": "application/zip"})
        if path not in self._marked:
            return Answer(404, b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"})
        return Answer(200, self.image(path), {"Content-Type": "image/jpeg"})

    def images_asked(self) -> dict[str, int]:
        """Of each image's path, how often it was asked for."""
        return {path: count for path, count in self.asked.items() if path != ZIP}

    def settings(self) -> dict[str, Any]:
        """What a run file's `source` needs to ask this server."""
        return {
            "kind": "coco", "annotations": f"{self.url}{ZIP}", "annotations_sha256": self.sha256, "images_url": self.url,
            "fetch": {"allow_http": True, "allow_private_hosts": True},
        }  # fmt: skip

    def _draw(self, path: str) -> bytes:
        first = (self._marked[path] or [0])[0]
        return draw(path, PALETTE[first % len(PALETTE)])


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=200, help="of train; a fifth as many of val")
    asked = parser.parse_args()
    with CocoServer(asked.images, asked.host, asked.port, asked.reached_as) as server:
        plant(server, asked.fault)
        print(server.url, flush=True)
        print(json.dumps(server.settings()), flush=True)
        server.wait()


if __name__ == "__main__":
    main()
