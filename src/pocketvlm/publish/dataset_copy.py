"""The dataset as it is published: the same shards without what only its owner should know, and whose images they are."""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pocketvlm.artifacts.dataset import PAIR, ROW_GROUP_ROWS, SPLITS, shard_paths
from pocketvlm.publish.licences import Licences

COLUMNS = (
    "image", "label", "label_id", "answer", "question", "sha256", "phash", "source", "source_id", "url", "author", "licence",
    "labelled_by", "teacher_model", "teacher_reason", "teacher_runner_up", "teacher_confidence", "teacher_votes", "variants",
)  # fmt: skip
"""What may be published. A column that is not named here stays at home: requests and costs of the teacher, and any new one."""
PUBLIC_SOURCES = ("digits", "coco", "unsplash", "hub", "kaggle")
"""Sources whose ids everybody can look up. Those of the others are paths in somebody's folders, and are left out."""
SIGNED = ("signature", "sig", "token", "key", "credential", "expires", "client_id", "apikey", "api_key", "access_token")
"""Parameters, or ends of their names, that let whoever has the address in."""


@dataclass
class Credits:
    """What the card says of the images."""

    licences: Licences = field(default_factory=Licences)
    labelled_by: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(who: source, teacher or person; model of the teacher or "") -> images."""
    licence_of: dict[str, str | None] = field(default_factory=dict)
    """First 16 hex digits of the sha256 of a test image -> its licence: golden images are named so."""
    rows: dict[str, int] = field(default_factory=dict)
    """Split -> images."""
    question: str = ""
    """That ships."""


def shards(folder: Path) -> list[Path]:
    """The dataset's Parquet files. Raises DataError when they are not all there."""
    return [path for split in SPLITS for path in shard_paths(folder, split)]


def read_credits(folder: Path) -> Credits:
    """Licence, author and labeller of every image."""
    credits = Credits()
    wanted = ["licence", "author", "source", "labelled_by", "teacher_model", "sha256", "question"]
    for path in shards(folder):
        split = path.name.partition("-")[0]
        for row in pq.read_table(path, columns=wanted).to_pylist():
            credits.licences.add(row["licence"], row["author"], row["source"])
            credits.labelled_by[(row["labelled_by"], row["teacher_model"] or "")] += 1
            credits.rows[split] = credits.rows.get(split, 0) + 1
            credits.question = row["question"]
            if split == "test":
                credits.licence_of[row["sha256"][:16]] = row["licence"]
    return credits


def write_public(shard: Path, to: Path) -> int:
    """Writes the shard without private columns, ids and addresses; returns how many addresses were left out.

    Equal shards give equal bytes. The images are copied as they are.
    """
    left_out = 0
    with pq.ParquetFile(shard) as source:
        names = [name for name in source.schema_arrow.names if name in COLUMNS]
        schema = _public_schema(source.schema_arrow, names)
        plain = [name for name in names if name not in ("image", "variants")]
        plain += [f"variants.list.element.{name}" for name in PAIR] if "variants" in names else []
        with pq.ParquetWriter(to, schema, compression="zstd", use_dictionary=plain, write_statistics=plain) as writer:
            for group in range(source.num_row_groups):
                table, left = _public(source.read_row_group(group, columns=names).select(names))
                left_out += left
                writer.write_table(table.cast(schema), row_group_size=ROW_GROUP_ROWS)
    return left_out


def _public(table: pa.Table) -> tuple[pa.Table, int]:
    sources = table["source"].to_pylist()
    given = table["url"].to_pylist()
    urls = [url if url and is_public(url) else None for url in given]
    ids = [source_id if source in PUBLIC_SOURCES else None
           for source, source_id in zip(sources, table["source_id"].to_pylist(), strict=True)]  # fmt: skip
    for name, values in (("url", urls), ("source_id", ids)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table, sum(bool(before) and after is None for before, after in zip(given, urls, strict=True))


def _public_schema(schema: pa.Schema, names: list[str]) -> pa.Schema:
    kept = pa.schema([schema.field(name) for name in names])
    described = json.loads((schema.metadata or {}).get(b"huggingface", b'{"info": {"features": {}}}'))
    features = described["info"]["features"]
    described["info"]["features"] = {name: features[name] for name in features if name in names}
    return kept.with_metadata({"huggingface": json.dumps(described)})


def is_public(url: str) -> bool:
    """Whether anybody may have this address: http(s), a public host, nothing in it that lets its holder in."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.username or parts.password or "." not in host:
        return False
    if host.endswith((".local", ".internal", ".intranet", ".corp", ".lan", ".svc", ".localhost")):
        return False
    try:
        if not ipaddress.ip_address(host).is_global:
            return False
    except ValueError:
        pass  # a name
    return not any(key.lower().endswith(SIGNED) for key, _ in parse_qsl(parts.query, keep_blank_values=True))
