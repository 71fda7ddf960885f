"""Reading NIfTI.

It is decoded here and not by ITK: ITK fills a truncated file with zeros, repairs a zero pixdim in silence and refuses
or drops the shear of an sform.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError
from .volume_checks import EXPORT_AGAIN, check_axes, check_spacing, refuse_many_volumes, set_geometry

# NIfTI datatype code -> numpy type (nifti1.h); complex and 128-bit types are no MRI magnitude images.
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
NIFTI_COLOURS = (128, 2304)
NIFTI_CODES = ("qform_code", "sform_code")  # as ITK calls them in an image's metadata
NIFTI_UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
# sizeof_hdr -> field: (byte offset, struct format), from nifti1.h and nifti2.h
NIFTI_LAYOUTS: dict[int, dict[str, tuple[int, str]]] = {
    348: {
        "dim": (40, "8h"), "datatype": (70, "h"), "pixdim": (76, "8f"), "vox_offset": (108, "f"), "scale": (112, "2f"),
        "units": (123, "B"), "codes": (252, "2h"), "quaternion": (256, "3f"), "offset": (268, "3f"),
        "srow": (280, "12f"),
    },
    540: {
        "dim": (16, "8q"), "datatype": (12, "h"), "pixdim": (104, "8d"), "vox_offset": (168, "q"), "scale": (176, "2d"),
        "units": (500, "i"), "codes": (344, "2i"), "quaternion": (352, "3d"), "offset": (376, "3d"),
        "srow": (400, "12d"),
    },
}  # fmt: skip


def read_nifti(path: Path) -> sitk.Image:
    """The scaled volume of a NIfTI-1 or NIfTI-2 file, plain or gzip: 3-D, float32, LPS mm, shear kept.

    Its metadata hold the `NIFTI_CODES`; both 0 say that the file knows nothing of directions and they are a guess.

    Raises InputError for a file that is damaged, cut short or not a single 3-D scalar volume, GeometryError for
    spacings or axes that no point can be computed from, and OSError where the file cannot be opened.
    """
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    # Deflate cannot shrink below 1/1032, so a header that promises more is refuted before memory is set aside for it.
    ceiling = path.stat().st_size * (1032 if compressed else 1)
    try:
        with path.open("rb") as file:
            stream = _Inflater(file) if compressed else file
            head = stream.read(540)
            header, dtype = _nifti_header(head, path)
            shape = _nifti_shape(header["dim"], path)
            needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
            start = max(int(header["vox_offset"][0]), 348)
            data = memoryview(b"")
            if start + needed <= ceiling:
                data = memoryview(head + stream.read(max(start + needed - len(head), 0)))[start : start + needed]
                while stream.read(1 << 20):  # reach the end, where gzip's checksum is compared
                    pass
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: the file is damaged or cut short ({error}). {EXPORT_AGAIN}") from error
    if len(data) < needed:
        raise InputError(f"{path}: cut short: its header promises {needed} bytes of voxels. {EXPORT_AGAIN}")
    voxels = np.frombuffer(data, dtype).reshape(shape)
    slope, intercept = header["scale"]
    if slope != 0.0 and math.isfinite(slope) and (slope, intercept) != (1.0, 0.0):  # 0 or NaN: no scaling (nifti1.h)
        voxels = voxels * float(slope) + float(intercept)
    columns, origin = _nifti_axes(header, path)
    image = sitk.GetImageFromArray(voxels.astype(np.float32))
    set_geometry(image, columns, origin)
    for name, code in zip(NIFTI_CODES, header["codes"]):
        image.SetMetaData(name, str(int(code)))
    return image


class _Inflater:
    """Decompresses a gzip file of one member or several, as `read` of a file.

    Python's own takes 8 KiB at a time and asks for the interpreter each time, which another thread may hold. Raises
    EOFError where the file ends too early, zlib.error where it is damaged.
    """

    CHUNK = 1 << 20

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._input = file, b""
        self._member = zlib.decompressobj(wbits=31)

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer at the end."""
        pieces = []
        while count:
            at_end = not self._input and not self._refill()
            if self._member.eof:
                self._input = self._input.lstrip(b"\0")  # may follow a member
                if self._input:
                    self._member = zlib.decompressobj(wbits=31)
                elif at_end:
                    break
                else:
                    continue
            piece = self._member.decompress(self._input, count)
            if at_end and not piece and not self._member.eof:
                raise EOFError("compressed data end too early")
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def _refill(self) -> bool:
        self._input = self._file.read(self.CHUNK)
        return bool(self._input)


def _nifti_header(head: bytes, path: Path) -> tuple[dict[str, tuple[float, ...]], np.dtype]:
    for order in "<>":
        size = struct.unpack_from(order + "i", head)[0] if len(head) >= 4 else 0
        if size in NIFTI_LAYOUTS and len(head) >= size:
            layout = NIFTI_LAYOUTS[size]
            break
    else:
        raise InputError(f"{path}: the file holds no NIfTI header. It is damaged or of another format. {EXPORT_AGAIN}")
    header = {name: struct.unpack_from(order + form, head, offset) for name, (offset, form) in layout.items()}
    code = int(header["datatype"][0])
    if code in NIFTI_COLOURS:
        raise InputError(f"{path}: colour voxels. Give a plain greyscale MRI volume.")
    if code not in NIFTI_TYPES:
        raise InputError(f"{path}: voxel type {code} (complex or unknown). Give the magnitude image.")
    return header, np.dtype(order + NIFTI_TYPES[code])


def _nifti_shape(dim: Sequence[float], path: Path) -> tuple[int, int, int]:
    rank, sizes = int(dim[0]), [int(n) for n in dim[1:]]
    if not 1 <= rank <= 7 or min(sizes[:rank]) < 1:
        raise InputError(f"{path}: the header's dimensions {sizes} make no sense. {EXPORT_AGAIN}")
    sizes = sizes[:rank] + [1] * (3 - rank)
    if sizes[2] == 1 and math.prod(sizes[3:]) == 1:
        raise InputError(f"{path}: a 2-D image. Give a 3-D volume, not a single slice.")
    if len(sizes) > 4 and math.prod(sizes[4:]) > 1:
        raise InputError(f"{path}: {math.prod(sizes[4:])} values a voxel (vector). Give a plain greyscale MRI volume.")
    refuse_many_volumes(math.prod(sizes[3:]), str(path))
    return sizes[2], sizes[1], sizes[0]


def _nifti_axes(header: Mapping[str, tuple[float, ...]], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Columns (3, 3) and origin (3,), LPS mm, by the sform, else the qform, else (as ITK does) the spacing alone.

    Source: nifti1.h, "3D image (volume) orientation and location in space", methods 1 to 3.
    """
    qfac, *pixdim = header["pixdim"][:4]
    unit = NIFTI_UNIT_MM.get(int(header["units"][0]) & 7, 1.0)
    check_spacing([value * unit for value in pixdim], str(path))  # even where the sform rules: 0 or -1 is no voxel size
    qform_code, sform_code = header["codes"]
    if sform_code > 0:
        affine = np.reshape(header["srow"], (3, 4)).astype(float)
        columns, origin = affine[:, :3], affine[:, 3]
    elif qform_code > 0:
        columns, origin = _rotation(header["quaternion"]) * pixdim, np.array(header["offset"], float)
        columns[:, 2] *= -1.0 if qfac < 0 else 1.0
    else:
        return np.diag(pixdim) * unit, np.zeros(3)
    if not (np.isfinite(columns).all() and np.isfinite(origin).all()):
        raise GeometryError(f"{path}: the header's position or axes are NaN. {EXPORT_AGAIN}")
    check_axes(columns * unit, str(path))
    ras_to_lps = np.array([-1.0, -1.0, 1.0])
    return ras_to_lps[:, None] * columns * unit, ras_to_lps * origin * unit


def _rotation(quaternion: Sequence[float]) -> np.ndarray:
    b, c, d = (float(value) for value in quaternion)
    a2 = 1.0 - (b * b + c * c + d * d)
    if a2 < 1e-7:  # a half turn, where float32 rounding may leave the norm above 1 (nifti1_io does the same)
        norm = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = math.sqrt(a2)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
