"""The colour space of a picture: ICC profiles that fit the pixels, and other descriptions of colour turned into a profile.

PNG (sRGB, gAMA, cHRM, cICP) and the family of AVIF and HEIC (nclx) name primaries and transfer functions. A profile of a matrix and curves
(ICC.1:2010, version 4) describes the same, so that all code after the reader handles profiles only. What no profile can describe (PQ and
HLG, whose white is not the display's) is reported in a notice. Unspecified colours and sRGB need no profile.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcm_codec.images.extras import raw_profile
from hpcm_codec.images.png import SIGNATURE, chunk_before_pixels, content_of

Chromaticities = tuple[float, ...]  # x and y of white, red, green, blue
Curve = tuple[float, ...]  # g, or g, a, b, c, d of: linear = (a·v + b)^g from v = d on, c·v below

_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_BT709_CURVE: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
# ITU-T H.273, tables 2 and 3; 2 means unspecified
_UNSPECIFIED = 2
_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    _UNSPECIFIED: SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    10: (1 / 3, 1 / 3, 1, 0, 0, 1, 0, 0),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 11, 12, 14, 15), _BT709_CURVE),
    **dict.fromkeys((_UNSPECIFIED, 13), SRGB_CURVE),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
    17: (2.6,),
}
_HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
_USUAL_GAMMA = 1 / 2.2  # of a file that means sRGB
_GAMMAS = (0.05, 5.0)  # others are nonsense
_TOLERANCE = 0.004  # within which primaries and gammas are those of sRGB
_D50 = np.array([0.96420288, 1.0, 0.82490540])  # the white of the connection space, as s15Fixed16 numbers hold it
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_CONTAINERS = (b"meta", b"iprp", b"ipco")
_BOXES_LOOKED_AT = 1000


class CodePoints(NamedTuple):
    """Colours as H.273 numbers them. full_range: whether black is 0 and white 255."""

    primaries: int
    transfer: int
    full_range: bool = True


def code_points_of(file: BinaryIO) -> CodePoints | None:
    """What a PNG's cICP chunk, or the nclx box of an AVIF or HEIC file, says; None without one. The file's position is kept."""
    kept = file.tell()
    try:
        start = content_of(file, 0, 12)
        if start.startswith(SIGNATURE):
            found = chunk_before_pixels(file, b"cICP")
            return CodePoints(found[0], found[1], found[3] != 0) if found is not None and len(found) == 4 else None
        return _nclx(file) if start[4:8] == b"ftyp" else None
    finally:
        file.seek(kept)


def _nclx(file: BinaryIO) -> CodePoints | None:
    """What the first nclx box of an ISO base media file says (ISO/IEC 14496-12); it lies in boxes of a few kinds."""
    begin, ends = 0, [file.seek(0, 2)]
    for _ in range(_BOXES_LOOKED_AT):
        while begin >= ends[-1]:
            begin = ends.pop()
            if not ends:
                return None
        head = content_of(file, begin, 16)
        size, header = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(head[8:16], "big"), 16
        past = ends[-1] if size == 0 else min(ends[-1], begin + size)
        kind, inside = head[4:8], begin + header
        if past < inside:
            return None
        begin = past
        if kind in _CONTAINERS:
            ends.append(past)
            begin = inside + (4 if kind == b"meta" else 0)
        elif kind == b"colr":
            content = content_of(file, inside, 11)
            if len(content) == 11 and content.startswith(b"nclx") and inside + 11 <= past:
                return CodePoints(*struct.unpack_from(">HH", content, 4))  # the decoder applies range and matrix
    return None


def icc_of(image: Image.Image, code_points: CodePoints | None, grey: bool, notices: list[str]) -> bytes | None:
    """The ICC profile of a picture of one or three components; notices get what had to be left out.

    image: with the metadata of its file. code_points: where the file has any; in a PNG they count more than a profile.
    """
    profile = image.info.get("icc_profile") or raw_profile(image, "icc") or raw_profile(image, "icm")
    if profile is not None and (code_points is None or image.format != "PNG"):
        if (other := other_space(profile, grey)) is None:
            return bytes(profile)
        notices.append(f"its ICC profile is of {other}, which the pixels are not, it was left out")
        return None
    if code_points is not None:
        return _profile_of_code_points(code_points, grey, notices)
    return _profile_of_png(image, grey)


def other_space(profile: bytes, grey: bool) -> str | None:
    """The name of a profile's components where a picture of RGB, or of grey, has not got them; None where it fits, or is broken."""
    space = profile[16:20] if profile[36:40] == b"acsp" else b"RGB "  # a broken one is passed on as it is
    return None if space in (b"RGB ", b"GRAY" if grey else b"RGB ") else space.decode("ascii", "replace").strip()


def _profile_of_code_points(found: CodePoints, grey: bool, notices: list[str]) -> bytes | None:
    if not found.full_range:
        notices.append("its colours are of the narrow range of video, which is not kept")
    if found.transfer in _HIGH_DYNAMIC_RANGE:
        name = _HIGH_DYNAMIC_RANGE[found.transfer]
        notices.append(f"its colours are {name} (high dynamic range), which is not kept: it will look dull")
        return None
    if found.primaries not in _PRIMARIES or found.transfer not in _CURVES:
        notices.append(
            f"its colours (primaries {found.primaries}, transfer {found.transfer}) are not known, taken as sRGB"
        )
        return None
    return _profile(_PRIMARIES[found.primaries], _CURVES[found.transfer], grey)


def _profile_of_png(image: Image.Image, grey: bool) -> bytes | None:
    """The profile that a PNG's gAMA and cHRM stand for; None for sRGB, and for what makes no sense."""
    if "srgb" in image.info or image.format != "PNG":
        return None
    gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")
    if gamma is not None and not _GAMMAS[0] <= gamma <= _GAMMAS[1]:
        gamma = None
    if primaries is None or grey or np.abs(np.subtract(primaries, SRGB)).max() < _TOLERANCE:
        primaries = SRGB
    if primaries == SRGB and gamma is not None and abs(gamma - _USUAL_GAMMA) < _TOLERANCE:
        gamma = None
    return _profile(primaries, SRGB_CURVE if gamma is None else (1 / gamma,), grey)


def _profile(primaries: Chromaticities, curve: Curve, grey: bool) -> bytes | None:
    """A profile; None for sRGB, and for primaries of which no colours can be mixed."""
    if curve == SRGB_CURVE and (grey or primaries == SRGB):
        return None
    return grey_profile(curve) if grey else rgb_profile(primaries, curve)


def rgb_profile(primaries: Chromaticities, curve: Curve) -> bytes | None:
    """An ICC profile of RGB with these primaries; None where they are no triangle, or too large."""
    xyz = [
        np.array([x / y, 1, (1 - x - y) / y]) if y else np.array([x, 0.0, 1 - x])
        for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    ]
    white, colours = xyz[0], np.stack(xyz[1:], axis=1)
    try:
        matrix = colours * np.linalg.solve(colours, white)
        cone = _BRADFORD @ white
        adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / cone) @ _BRADFORD
    except np.linalg.LinAlgError:
        return None
    to_connection = adapted @ matrix
    if not np.isfinite(to_connection).all() or np.abs(to_connection).max() > 4:
        return None
    tags = {b"chad": b"sf32" + bytes(4) + _fixed(adapted.ravel())}
    tags |= {name + b"XYZ": _xyz(to_connection[:, place]) for place, name in enumerate((b"r", b"g", b"b"))}
    return _icc(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(curve)))


def grey_profile(curve: Curve) -> bytes:
    """An ICC profile of grey."""
    return _icc(b"GRAY", {b"kTRC": _curve(curve)})


def _icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A display profile: header, table of tags, and what they hold, equal contents once."""
    tags = {b"desc": _text("as the picture's file says"), b"cprt": _text("none"), b"wtpt": _xyz(_D50), **tags}
    first = 128 + 4 + 12 * len(tags)
    table, content, places = struct.pack(">I", len(tags)), b"", dict[bytes, int]()
    for name, value in tags.items():
        if value not in places:
            places[value] = first + len(content)
            content += value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", places[value], len(value))
    header = struct.pack(">I4sI4s4s4s12x4s28x", first + len(content), b"", 0x04200000, b"mntr", space, b"XYZ ", b"acsp")
    return (header + _fixed(_D50)).ljust(128, b"\0") + table + content


def _curve(curve: Curve) -> bytes:
    return b"para" + bytes(4) + struct.pack(">Hxx", 0 if len(curve) == 1 else 3) + _fixed(curve)


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _fixed(values: NDArray[np.float64] | Curve) -> bytes:
    """s15Fixed16 numbers."""
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)
