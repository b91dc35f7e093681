"""Reads hostile files as the labeller does, in a process of its own: `hostile_child.py FOLDER`, of images and of archives.

Prints JSON: the reasons of each file, and the most memory that the process had, in MB.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from PIL import Image

from pocketvlm.environment import Environment
from pocketvlm.errors import DataError
from pocketvlm.run_file.source import ArchiveSource, FolderSource
from pocketvlm.sources.images import decode, strict_pillow
from pocketvlm.sources.open import open_source
from pocketvlm.sources.record import Context, Record

MAX_PIXELS = 50_000_000
CAPS = {"max_members": 1000, "max_total_bytes": 200_000_000}


def reason(record: Record) -> str:
    """Empty for an image."""
    if record.problem:
        return record.problem.reason
    made = decode(record.data or b"", MAX_PIXELS)
    return "" if isinstance(made, Image.Image) else made.reason


def main(folder: Path) -> None:
    context = Context(folder, ["roof"], environment=Environment(scratch=folder / "scratch"))
    found: dict[str, list[str]] = {}
    with strict_pillow(MAX_PIXELS):
        for record in open_source(FolderSource(kind="folder", path="images"), context):
            found[record.source_id] = [reason(record)]
        for path in sorted((folder / "archives").iterdir()):
            try:
                source = ArchiveSource.model_validate({"kind": "archive", "path": f"archives/{path.name}", **CAPS})
                found[path.name] = [reason(record) for record in open_source(source, context)]
            except DataError as error:
                found[path.name] = ["DataError", str(error)]
    # Not ru_maxrss, which a program inherits from whoever started it.
    peak = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak is not None
    rss_mb = int(peak[1]) / 1024
    print(json.dumps({"found": found, "rss_mb": rss_mb}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
