"""The families of small VLMs: what each is to the stages, one file each, and the table of them. No torch."""

from pocketvlm.student.families.family import HEAD, MEDIA, PARTS, Eye, Family, Geometry, Sight, Template
from pocketvlm.student.families.table import FAMILIES, REFUSED, geometry_of, read_geometry
from pocketvlm.student.families.targets import full_modules, lora_targets

__all__ = [
    "FAMILIES",
    "HEAD",
    "MEDIA",
    "PARTS",
    "REFUSED",
    "Eye",
    "Family",
    "Geometry",
    "Sight",
    "Template",
    "full_modules",
    "geometry_of",
    "lora_targets",
    "read_geometry",
]
