"""What ITK would let pass in NRRD and MetaImage files.

It takes negative or missing spacings for good ones and returns a damaged compressed MetaImage as if it were whole.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import GeometryError, InputError
from .file_checks import HEADER_LINES
from .volume_checks import EXPORT_AGAIN, check_axes, check_spacing, numbers

NO_SPACING = "the header gives no voxel spacing for each of three axes. Add it, or export the volume again."
META_TYPE_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip


def _header_fields(path: Path, separator: str, last: bytes) -> tuple[dict[str, str], int]:
    """The text header's fields (names in lower case) and the byte where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        for _ in range(HEADER_LINES):
            line = stream.readline(65536)
            if not line or line in (b"\n", b"\r\n"):
                break
            name, _, value = line.decode("latin-1").partition(separator)
            fields[name.strip().lower()] = value.strip()
            if last and line.lower().startswith(last):
                break
        return fields, stream.tell()


def check_nrrd_header(path: Path) -> None:
    """Raises GeometryError for missing or absurd spacings and singular axes of an NRRD file.

    Source: teem.sourceforge.net/nrrd/format.html (`spacings`, `space directions`).
    """
    fields, _ = _header_fields(path, ":", b"")
    if "sizes" not in fields or len(fields["sizes"].split()) < 3:
        return  # no NRRD, or 2-D: said by ITK or after reading
    vectors = [numbers(text) for text in re.findall(r"\([^)]*\)", fields.get("space directions", ""))]
    if len(vectors) >= 3 and min(map(len, vectors)) >= 3:
        check_axes(np.array([vector[:3] for vector in vectors[:3]]).T, str(path))
        return
    # NaN stands for "no spacing", right for the axis of components only.
    spacing = [value for value in numbers(fields.get("spacings", "")) if not math.isnan(value)]
    if len(spacing) < 3:
        raise GeometryError(f"{path}: {NO_SPACING}")
    check_spacing(spacing[:3], str(path))


def check_meta_file(path: Path) -> None:
    """Raises InputError for a MetaImage that is damaged or cut short, GeometryError for bad spacings or axes.

    Detached voxel files in several pieces are left to ITK.
    """
    fields, start = _header_fields(path, "=", b"elementdatafile")
    sizes = [int(n) for n in numbers(fields.get("dimsize", ""))]
    where = fields.get("elementdatafile", "")
    # NDims at odds with the other fields makes ITK write beyond its memory and end the whole process.
    if not where or fields.get("ndims") != str(len(sizes)) or len(sizes) > 4:
        raise InputError(f"{path}: no complete MetaImage header. It is damaged or of another format. {EXPORT_AGAIN}")
    if len(sizes) < 3:
        raise InputError(f"{path}: a {len(sizes)}-D image. Give a 3-D volume, not a single slice.")
    spacing = numbers(fields.get("elementspacing", fields.get("elementsize", "")))
    if len(spacing) < 3:
        raise GeometryError(f"{path}: {NO_SPACING}")
    check_spacing(spacing[:3], str(path))
    matrix = numbers(fields.get("transformmatrix", fields.get("rotation", fields.get("orientation", ""))))
    if len(matrix) == 9:
        check_axes(np.reshape(matrix, (3, 3)).T * spacing, str(path))
    if where.upper() == "LOCAL":
        _check_meta_voxels(path, path, start, fields, sizes)
    elif "%" not in where and not where.upper().startswith("LIST"):
        _check_meta_voxels(path, path.parent / where, int(fields.get("headersize", "0")), fields, sizes)


def _check_meta_voxels(path: Path, data: Path, start: int, fields: Mapping[str, str], sizes: Sequence[int]) -> None:
    if not data.is_file():
        raise InputError(f"{path}: its voxel file {data.name} is missing. Copy both files to the same folder.")
    channels = int(fields.get("elementnumberofchannels", "1"))
    needed = math.prod(sizes) * channels * META_TYPE_BYTES.get(fields.get("elementtype", "").upper(), 1)
    compressed = fields.get("compresseddata", "").lower().startswith(("t", "1"))  # as MetaIO judges it
    found = _inflated_bytes(data, max(start, 0)) if compressed else data.stat().st_size - max(start, 0)
    if found < needed:
        raise InputError(
            f"{path}: the voxel data are damaged or cut short ({max(found, 0)} of {needed} bytes). {EXPORT_AGAIN}"
        )


def _inflated_bytes(path: Path, start: int) -> int:
    """The bytes that a whole zlib or gzip stream holds; 0 where it ends early or its checksum fails."""
    stream, count = zlib.decompressobj(47), 0
    with path.open("rb") as data:
        data.seek(start)
        try:
            while not stream.eof:
                block = data.read(1 << 20)
                if not block:
                    return 0
                count += len(stream.decompress(block))
        except zlib.error:
            return 0
    return count
