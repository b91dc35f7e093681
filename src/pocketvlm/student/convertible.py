"""A base checkpoint as llama.cpp's converter and the device need it, which the merger makes of a trained one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pocketvlm.run_file import Device
from pocketvlm.student.base import WEIGHT_FILES, checkpoint_files


def make_convertible(source: Path, folder: Path, geometry: Any, device: Device) -> Path:
    """Fills `folder`, which must not exist: weights as links, the other files copied, the processor files for this device.

    `geometry` is the checkpoint's. Returns the folder.
    """
    from pocketvlm.student.checkpoint import complete_config

    folder.mkdir(parents=True)
    weights = set(source.glob(WEIGHT_FILES))
    for file in checkpoint_files(source):
        if file in weights:
            (folder / file.name).symlink_to(file.resolve())
        else:
            shutil.copyfile(file, folder / file.name)
    geometry.family.save_processor(folder, source, geometry, device)
    complete_config(folder)
    return folder
