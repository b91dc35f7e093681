"""Files that were made to do harm, small ones: images and archives, built here so that each says what is wrong with it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

from PIL import Image

GIF_JS = b"GIF89a/*" + bytes(20) + b"*/=1;alert(document.cookie)//"


def encoded(kind: str, side_px: int = 32, **options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side_px, side_px)).convert("RGB").save(out, kind, **options)
    return out.getvalue()


ZEROS = zlib.compress(bytes(200_000_000), 1)
"""0.9 MB that unpack to 200."""
JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP")


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 0, interlaced: int = 0,
        pixels: bytes | None = None) -> bytes:  # fmt: skip
    """A PNG of which everything is as said; `chunks` come before the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = zlib.compress(bytes(1000)) if pixels is None else pixels
    parts = [(b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def zipped(files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packing) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, packing)
    return out.getvalue()


def _jpeg_of(width: int, height: int) -> bytes:
    """The JPEG with other dimensions in its frame header."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def _scans(count: int) -> bytes:
    """A progressive JPEG, the last scan of which comes again and again."""
    whole = encoded("JPEG", side_px=512, progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


IMAGES: dict[str, tuple[bytes, set[str]]] = {
    "bomb of 14000 x 14000": (png(14_000, 14_000, pixels=ZEROS), {"too_many_pixels"}),
    "bomb of 7000 x 7000": (png(7000, 7000, pixels=ZEROS), {""}),
    "png of 2^31 x 2^31": (png(2**31 - 1, 2**31 - 1), {"too_many_pixels", "damaged"}),
    "png of 0 x 0": (png(0, 0), {"damaged"}),
    "png of 1 x 50 million": (png(1, 50_000_001), {"too_many_pixels"}),
    "png of 49 million pixels and no bytes": (png(7000, 7000), {"truncated", "damaged"}),
    "16-bit rgba bomb of 49 million pixels": (png(7000, 7000, depth=16, colour=6), {"truncated", "damaged"}),
    "interlaced bomb": (png(7000, 7000, interlaced=1), {"truncated", "damaged"}),
    "png with a text bomb": (png(8, 8, (b"zTXt", b"a\0\0" + ZEROS), pixels=zlib.compress(bytes(72))), {"", "damaged"}),
    "png with a thousand text bombs": (png(8, 8, *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000), 9))] * 1000), {"damaged"}),
    "png with a profile bomb": (png(8, 8, (b"iCCP", b"a\0\0" + ZEROS)), {"damaged", ""}),
    "png with an international bomb": (png(8, 8, (b"iTXt", b"a\0\1\0\0\0" + ZEROS)), {"damaged", ""}),
    "png whose pixels unpack to more": (png(8, 8, pixels=ZEROS), {""}),
    "png with a chunk of 4 GB": (PNG[:33] + b"\xff\xff\xff\xffIDAT" + PNG[41:], {"truncated", "damaged", ""}),
    "png of a wrong checksum": (PNG[:20] + b"\xff" + PNG[21:], {"damaged", "too_many_pixels"}),
    "jpeg of 65535 x 65535": (_jpeg_of(65_535, 65_535), {"too_many_pixels"}),
    "jpeg of 7000 x 7000 in 700 bytes": (_jpeg_of(7000, 7000), {"truncated", "damaged", ""}),
    "jpeg of 0 x 0": (_jpeg_of(0, 0), {"damaged"}),
    "jpeg of a thousand scans": (_scans(1000), {"", "damaged", "truncated"}),
    "jpeg without tables": (b"\xff\xd8\xff\xda" + bytes(50) + b"\xff\xd9", {"damaged", "truncated"}),
    "jpeg and html": (JPEG + b"<html><script>alert(1)</script></html>", {""}),
    "html in a jpeg's comment": (JPEG[:2] + b"\xff\xfe\x00\x1e<script>alert(1)</script>--" + JPEG[2:], {""}),
    "jpeg and zip": (JPEG + zipped({"../../x": b"x"}), {""}),
    "png and zip": (PNG + zipped({"../../x": b"x"}), {""}),
    "png and php": (png(8, 8, (b"tEXt", b"Comment\0<?php system($_GET['c']); ?>"), pixels=zlib.compress(bytes(72))), {""}),
    "zip and png": (zipped({"x": b"x"}) + PNG, {"unsupported_format"}),
    "html and jpeg": (b"<!doctype html><!--" + JPEG + b"-->", {"unsupported_format"}),
    "gif and javascript": (GIF_JS, {"unsupported_format"}),
    "gif bomb": (b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"," + bytes(20), {"unsupported_format"}),
    "pdf and jpeg": (b"%PDF-1.4\n" + JPEG, {"unsupported_format"}),
    "svg of a billion laughs": (b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
                                {"unsupported_format"}),
    "svg that reads a file": (b'<svg xmlns:x="http://www.w3.org/1999/xlink"><image x:href="file:///etc/passwd"/></svg>',
                              {"unsupported_format"}),
    "postscript that runs": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", {"unsupported_format"}),
    "mvg of another decoder": (b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'\n", {"unsupported_format"}),
    "fits bomb": (b"SIMPLE  =                    T" + b" " * 50 + b"NAXIS1  =           2147483647", {"unsupported_format"}),
    "tiff in a loop": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", {"unsupported_format"}),
    "icon in an icon": (b"\0\0\1\0\xff\xff" + bytes(100), {"unsupported_format"}),
    "webp of 16384 x 16384": (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(8),
                              {"damaged", "truncated", "too_many_pixels"}),
    "webp of lying length": (WEBP[:4] + b"\xff\xff\xff\xff" + WEBP[8:], {"damaged", "truncated", ""}),
    "webp without pixels": (b"RIFF\x04\0\0\0WEBP", {"damaged"}),
    "avif": (b"\0\0\0\x1cftypavif" + bytes(100), {"unsupported_format"}),
    "half a jpeg": (JPEG[: len(JPEG) // 2], {"truncated", "damaged"}),
    "half a png": (PNG[: len(PNG) // 2], {"truncated", "damaged"}),
    "half a webp": (WEBP[: len(WEBP) // 2], {"truncated", "damaged"}),
    "three bytes": (b"\xff\xd8\xff", {"truncated", "damaged"}),
    "zeros": (bytes(1_000_000), {"unsupported_format"}),
    "exif in a loop": (encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
                       {"", "damaged"}),
    "exif of another world": (encoded("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(60)), {"", "damaged"}),
}  # fmt: skip
"""Name -> bytes, and the reasons that are right for it; an empty one: it is an image, and what else it is does no harm."""


def tarred(*infos: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=form) as archive:
        for info, data in infos:
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data + bytes(max(0, info.size - len(data)))))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for field, value in fields.items():
        setattr(info, field, value)
    return info


GOOD = (entry("roof/good.png"), PNG)
SLIPS = [
    "../evil.png", "roof/../../evil.png", "/tmp/evil.png", "//evil.png", "roof/../../../../../../tmp/evil.png", "..\\evil.png",
    "roof\\..\\..\\evil.png", "C:\\evil.png", "\\\\host\\share\\evil.png", "./../evil.png", "roof/..", "roof/" + "a" * 4000,
]  # fmt: skip


def _patched(data: bytes, at: bytes, offset: int, value: bytes, *, last: bool = False) -> bytes:
    place = (data.rindex if last else data.index)(at) + offset
    return data[:place] + value + data[place + len(value) :]


def _retarred(header: bytes) -> bytes:
    """A header block with its checksum made right."""
    return header[:148] + b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512])) + header[156:512]


def _tar_with_size(size: bytes) -> bytes:
    whole = tarred(GOOD, (entry("roof/lies.png"), b"x"))
    at = whole.index(b"roof/lies.png")
    return whole[:at] + _retarred(whole[at : at + 124] + size + whole[at + 136 : at + 512]) + whole[at + 512 :]


def _overlapping() -> bytes:
    """Two members of the list mean the same bytes."""
    one = zipped({"roof/a.png": bytes(3_000_000), "roof/good.png": PNG, "roof/b.png": PNG})
    at = one.rindex(b"PK\x01\x02")
    return one[: at + 42] + struct.pack("<I", 0) + one[at + 46 :]


def _encrypted() -> bytes:
    data = zipped({"roof/a.png": PNG, "roof/good.png": PNG})
    return _patched(_patched(data, b"PK\x03\x04", 6, b"\1"), b"PK\x01\x02", 8, b"\1")


def _unix_mode(mode: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("roof/link.png")
        info.create_system, info.external_attr = 3, mode << 16
        archive.writestr(info, b"/etc/passwd")
        archive.writestr("roof/good.png", PNG)
    return out.getvalue()


def _mixed(packing: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("roof/good.png", PNG)
        archive.writestr("roof/bomb.png", bytes(5_000_000), packing)
    return out.getvalue()


def _many(count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index in range(count):
            archive.writestr(f"roof/{index}.png", b"")
    return out.getvalue()


def _xz_of_memory(size_code: int) -> bytes:
    """The header of its block asks for another dictionary."""
    data = bytearray(lzma.compress(GOOD_TAR))
    end = 12 + (data[12] + 1) * 4
    at = data.index(b"\x21\x01", 12, end)
    data[at + 2] = size_code
    data[end - 4 : end] = struct.pack("<I", zlib.crc32(data[12 : end - 4]))
    return bytes(data)


def _said(offset: int, value: bytes) -> bytes:
    """A zip whose list of members says something else of the last one."""
    return _patched(GOOD_ZIP, b"PK\x01\x02", offset, value, last=True)


def _size(value: int) -> bytes:
    return struct.pack("<I", value)


GOOD_ZIP = zipped({"roof/good.png": PNG, "roof/second.png": PNG * 100})
GOOD_TAR = tarred(GOOD, (entry("roof/second.png"), PNG * 100))
BOMB = tarred(GOOD, (entry("roof/bomb.png"), bytes(5_000_000)))
LONG_NAME = tarred((entry("././@LongLink", tarfile.GNUTYPE_LONGNAME), b"n" * 10))[:1024]

ARCHIVES: dict[str, tuple[str, bytes | Callable[[], bytes], set[str]]] = {
    **{f"zip-slip {name[:40]}": (".zip", zipped({name: PNG, "roof/good.png": PNG}), {"unsafe_name"}) for name in SLIPS},
    **{f"tar-slip {name[:40]}": (".tar", tarred((entry(name), PNG), GOOD), {"unsafe_name"}) for name in SLIPS},
    "zip: NUL in a name": (".zip", zipped({"roof/good.png": PNG, "roof/aXb": PNG}).replace(b"aXb", b"a\0b"), {"unsafe_name"}),
    "zip: name that is no UTF-8": (".zip", zipped({"roof/good.png": PNG, "roof/\u00e9": PNG}).replace(b"\xc3\xa9", b"\xff\xfe"),
                                   {"DataError"}),
    "zip: link": (".zip", _unix_mode(0o120777), {"link"}),
    "zip: device": (".zip", _unix_mode(0o020666), {"not_a_file"}),
    "zip: pipe": (".zip", _unix_mode(0o010666), {"not_a_file"}),
    "zip: encrypted": (".zip", _encrypted(), {"encrypted"}),
    "zip: one name twice": (".zip", zipped({"roof/good.png": PNG, "roof/a.png": PNG, "./roof//a.png": b"x"}), {"duplicate_name"}),
    "zip: nested bomb": (".zip", zipped({"roof/good.png": PNG, "roof/a.png": zipped({"x": bytes(10**6)})}), {"not an image"}),
    "zip: bomb": (".zip", zipped({"roof/good.png": PNG, "roof/bomb.png": bytes(5_000_000)}), {"too_high_ratio"}),
    "zip: bomb beyond a member's cap": (".zip", lambda: zipped({"roof/good.png": PNG, "roof/bomb.png": bytes(70_000_000)}),
                                        {"too_many_bytes"}),
    "zip: bzip2 bomb": (".zip", _mixed(zipfile.ZIP_BZIP2), {"unsupported_packing"}),
    "zip: lzma bomb": (".zip", _mixed(zipfile.ZIP_LZMA), {"unsupported_packing"}),
    "zip: overlapping members": (".zip", _overlapping(), {"overlapping_member"}),
    "zip: size said too small": (".zip", _said(24, _size(5)), {"damaged"}),
    "zip: size said too large": (".zip", _said(24, _size(9_000_000)), {"damaged"}),
    "zip: packed size said too large": (".zip", _said(20, _size(2**31)), {"overlapping_member"}),
    "zip: total said beyond the cap": (".zip", _said(24, b"\xfe\xff\xff\xff"), {"DataError"}),
    "zip: member lies elsewhere": (".zip", _said(42, _size(2**31)), {"overlapping_member"}),
    "zip: other name at the member": (".zip", _patched(GOOD_ZIP, b"roof/second", 0, b"roof/SECOND"), {"damaged"}),
    "zip: wrong checksum": (".zip", _said(16, b"\1\2\3\4"), {"damaged"}),
    "zip: unknown packing": (".zip", _said(10, b"\x63\0"), {"unsupported_packing"}),
    "zip: 2,000 members": (".zip", _many(2000), {"DataError"}),
    "zip: list said shorter": (".zip", _patched(GOOD_ZIP, b"PK\x05\x06", 12, struct.pack("<I", 10)), {"DataError"}),
    "zip: list said to be of 4 GB": (".zip", _patched(GOOD_ZIP, b"PK\x05\x06", 12, b"\xff\xff\xff\x7f"), {"DataError"}),
    "zip: cut": (".zip", GOOD_ZIP[:-30], {"DataError"}),
    "zip: its first half": (".zip", GOOD_ZIP[: len(GOOD_ZIP) // 2], {"DataError"}),
    "zip: empty file": (".zip", b"", {"DataError"}),
    "zip: text": (".zip", b"PK is not enough", {"DataError"}),
    "zip: behind a png": (".zip", PNG + GOOD_ZIP, {"DataError"}),
    "zip: behind a gif": (".zip", GIF_JS + GOOD_ZIP, {"DataError"}),
    "zip: is a tar": (".zip", GOOD_TAR, {"DataError"}),
    "tar: link": (".tar", tarred((entry("roof/l.png", tarfile.SYMTYPE, "/etc/passwd"), b""), GOOD), {"link"}),
    "tar: link to a folder, and a file in it": (
        ".tar", tarred((entry("roof/out", tarfile.SYMTYPE, "../.."), b""), (entry("roof/out/evil.png"), PNG), GOOD), {"link"}),
    "tar: hard link": (".tar", tarred((entry("roof/l.png", tarfile.LNKTYPE, "/etc/passwd"), b""), GOOD), {"link"}),
    "tar: hard link to a link": (".tar", tarred((entry("roof/a", tarfile.SYMTYPE, "/etc"), b""),
                                                (entry("roof/b", tarfile.LNKTYPE, "roof/a"), b""), GOOD), {"link"}),
    "tar: device": (".tar", tarred((entry("roof/d.png", tarfile.CHRTYPE, devmajor=1, devminor=5), b""), GOOD), {"not_a_file"}),
    "tar: disk": (".tar", tarred((entry("roof/d.png", tarfile.BLKTYPE), b""), GOOD), {"not_a_file"}),
    "tar: pipe": (".tar", tarred((entry("roof/p.png", tarfile.FIFOTYPE), b""), GOOD), {"not_a_file"}),
    "tar: file with holes": (".tar", tarred((entry("roof/h.png", tarfile.GNUTYPE_SPARSE), b""), GOOD), {"not_a_file"}),
    "tar: one name twice": (".tar", tarred(GOOD, (entry("roof/a.png"), PNG), (entry("roof/a.png"), b"x")), {"duplicate_name"}),
    "tar: negative size": (".tar", _tar_with_size(b"\xff" * 11 + b"\0"), {"DataError"}),
    "tar: size that leads back": (".tar", _tar_with_size(b"\xff" * 10 + b"\xfc\0"), {"DataError"}),
    "tar: size of an exabyte": (".tar", _tar_with_size(b"\x80" + b"\0" * 3 + b"\x10" + b"\0" * 7), {"DataError"}),
    "tar: size that is no number": (".tar", _tar_with_size(b"not a number"), {"DataError"}),
    "tar: pax size that lies": (".tar", tarred((entry("roof/x.png", pax_headers={"size": "999999999999"}), PNG), GOOD,
                                               form=tarfile.PAX_FORMAT), {"DataError"}),
    "tar: pax header of megabytes": (".tar", tarred((entry("roof/x.png", pax_headers={"comment": "c" * 3_000_000}), PNG), GOOD,
                                                    form=tarfile.PAX_FORMAT), {"DataError"}),
    "tar: pax name that slips": (".tar", tarred((entry("x", pax_headers={"path": "../../evil.png"}), PNG), GOOD,
                                                form=tarfile.PAX_FORMAT), {"unsafe_name"}),
    "tar: thousands of long names": (".tar", LONG_NAME * 3000 + GOOD_TAR, {"DataError"}),
    "tar: damaged header": (".tar", _patched(GOOD_TAR, b"roof/second", 0, b"ROOF"), {"DataError"}),
    "tar: cut in a member": (".tar", GOOD_TAR[:1600], {"DataError"}),
    "tar: cut between members": (".tar", GOOD_TAR[:1024], {"DataError"}),
    "tar: empty file": (".tar", b"", {"DataError"}),
    "tar: is a zip": (".tar", GOOD_ZIP, {"DataError"}),
    "tar.gz: bomb": (".tar.gz", gzip.compress(BOMB), {"too_high_ratio"}),
    "tar.bz2: bomb": (".tar.bz2", bz2.compress(BOMB), {"too_high_ratio"}),
    "tar.xz: bomb": (".tar.xz", lzma.compress(BOMB), {"too_high_ratio"}),
    "tar.gz: bomb behind the end": (".tar.gz", lambda: gzip.compress(GOOD_TAR + bytes(300_000_000), 1), {"DataError"}),
    "tar.gz: header bomb": (".tar.gz", lambda: gzip.compress(
        _retarred(entry("x", tarfile.XHDTYPE, size=900_000_000).tobuf()) + bytes(300_000_000), 1), {"DataError"}),
    "tar.gz: cut": (".tar.gz", gzip.compress(GOOD_TAR)[:-20], {"DataError"}),
    "tar.gz: wrong checksum": (".tar.gz", gzip.compress(GOOD_TAR)[:-8] + b"\1\2\3\4\0\0\0\0", {"DataError"}),
    "tar.gz: zip behind it": (".tar.gz", gzip.compress(GOOD_TAR) + GOOD_ZIP, {"DataError"}),
    "tar.gz: is a png": (".tar.gz", PNG, {"DataError"}),
    "tar.bz2: damaged": (".tar.bz2", bz2.compress(GOOD_TAR)[:60] + b"xxxx" + bz2.compress(GOOD_TAR)[64:], {"DataError"}),
    "tar.xz: wants 1.5 GB of memory": (".tar.xz", _xz_of_memory(37), {"DataError"}),
    "tar.xz: wants 4 GB of memory": (".tar.xz", _xz_of_memory(40), {"DataError"}),
}  # fmt: skip
"""Name -> suffix, bytes (or what makes them), and the reasons of its records that are right; `DataError`: it is refused whole."""
