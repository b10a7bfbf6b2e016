"""The pictures to measure on: the usual sets by name, or any folder.

`kodak` is looked up in the folder the user names, in $HPCM_DATA, in ../shared/data beside the current directory and
beside a source checkout, and at last downloaded once into the user's cache. Wherever it is found, its 24 files are
compared with their known SHA-256: only then are results comparable with other results on Kodak. `clic2020` and `tecnick`
are looked up in the same places and counted; they are not downloaded, since their owners ask users to visit their pages.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.images import READABLE
from hpcm_codec.system.files import file_error
from hpcm_codec.system.folders import home

KODAK = "kodak"


@dataclass(frozen=True)
class NamedSet:
    """A set that users provide. pictures: how many it has; what: which edition, and where to get it."""

    pictures: int
    what: str


OTHER_SETS = {
    "clic2020": NamedSet(41, "the 41 pictures of CLIC 2020's professional validation set, https://compression.cc"),
    "tecnick": NamedSet(100, "the 100 pictures of Tecnick's SAMPLING set, RGB, OR, 1200×1200, https://testimages.org"),
}
KODAK_URL = "https://r0k.us/graphics/kodak/kodak/"
DATA_VARIABLE = "HPCM_DATA"
# Of the PNG files at KODAK_URL.
KODAK_SHA256 = {
    "kodim01.png": "a56e27cbf5f843c048b6af1d6e090760e9c92fadba88b7dee0205918a37523bd",
    "kodim02.png": "4f4b74a79237e311d72cad958237b5f7088d8bce1c82305ebefe1a70e3022dfd",
    "kodim03.png": "e25ca1ff2f0c0cb5fdfd5f9b0a0bb21ac4c3de3c84a67f35b09a85d3306249db",
    "kodim04.png": "e3b946107c5d3441c022f678d0c3caf1e224d81b1604ba840a4f88e562de61aa",
    "kodim05.png": "10349e963c5c813d327852f82c1795fa4148d69fedffc4c589bee458e3ac3d53",
    "kodim06.png": "363510303b715d4cbc384e1ce227e466b613a09e1b71ae985882bf8e7fbd9b18",
    "kodim07.png": "b77d3f006f42414bb242222e0482e750c0fb9e5ee8d4bed2f6f11c5605fe54a4",
    "kodim08.png": "ba23983c76b4832ee0e8af0592664756841a16779acd69f792e268fb6d13d6e7",
    "kodim09.png": "6a4361c2fc194feb4edaa9f9a4a0620fb9943e460ac7fdf037fb0f6dd6607a7d",
    "kodim10.png": "9dfb70f5867c29ff9ed6313683f19b3d867849e40fbc0c4c54a4a89df341cf23",
    "kodim11.png": "7936814b58b5387fce2e4e2488b4ec830dadd95fa9520f358ddb30990b50f2b6",
    "kodim12.png": "d78c37c2f04f23761ed2367dd77e2db584ddd4c3950833fecf89f199a8126980",
    "kodim13.png": "bc34a3ce58dea09dce1704c997171602de90cb34d0c8503a988b77f473d39b08",
    "kodim14.png": "55a94550ff18f3246c4074fd32b77b0c74447c26b6ad274d564d999c0450ba6e",
    "kodim15.png": "7538cbb80cb9103606c48b806eae57d56c885c7f90b9b3be70a41160f9cbb683",
    "kodim16.png": "a89c7268ccd4718ba424a99fc4643c572cf692ca6eae887185ceb4e9f11d2e54",
    "kodim17.png": "37afcc89fbdcb76d9518e04b2fc011027e2f4cd14b3b2f83cefd721641a47c5b",
    "kodim18.png": "1a9258c365988961d87a0598725b609139c303ad48a5aad6c503c3b1a87849aa",
    "kodim19.png": "b7450b264b1b0a411390d8931b112c27905a992520fc90569dc4b920aa32bbdc",
    "kodim20.png": "3b46c71e3b92a563820ba32936be8330c586c41f938efd94be938386aae4328a",
    "kodim21.png": "ac958597c82073f6bb65129c68f72b651db5b9efd82e11547d07350214bc268b",
    "kodim22.png": "1cee58eb1f2d9c7ebb254d208a03c783ce6cf2c4d8c2cf45e235dd23b4ce1b29",
    "kodim23.png": "e3111a2fd4da24af15d6459ef9eacfe54106b38e27b4a21821b75c3f5d2d5baf",
    "kodim24.png": "1071c68372cc5a01435c2c225a5cf7d4bb803846ec08bb6b3d6721b156d7cb96",
}


@dataclass(frozen=True)
class DataSet:
    """Pictures to measure on: `names` are the paths below `folder`, in the order they are measured."""

    name: str
    folder: Path
    names: tuple[str, ...]

    def first(self, count: int | None) -> DataSet:
        """The same set cut to its first pictures; None leaves it whole."""
        return DataSet(self.name, self.folder, self.names[:count])

    def path(self, name: str) -> Path:
        """The file of a picture of this set."""
        return self.folder / name


def find_dataset(
    name_or_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    announce: Callable[[str], None] | None = None,
) -> DataSet:
    """The data set called "kodak", "clic2020" or "tecnick", or the pictures in a folder and its subfolders.

    data_dir: where to look for a named set first.
    announce: called with one line before something is downloaded.
    Raises FileError when the folder is missing or holds no pictures, or the named set found is not complete
    and intact.
    """
    if os.fspath(name_or_dir) == KODAK:
        return _find_kodak(data_dir, announce)
    if os.fspath(name_or_dir) in OTHER_SETS:
        return _find_other(os.fspath(name_or_dir), data_dir)
    folder = Path(name_or_dir)
    if not folder.is_dir():
        reason = "is a file, not a folder" if folder.exists() else "no such folder"
        raise FileError(reason, file=folder, advice=f"name a folder of pictures, or {', '.join((KODAK, *OTHER_SETS))}")
    names = _pictures_below(folder)
    if not names:
        raise FileError("holds no pictures", file=folder, advice="name a folder with pictures, PNG files for example")
    return DataSet(folder.resolve().name, folder, names)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key for names with numbers: the numbers are compared by value.

    >>> sorted(["b10.png", "b9.png", "a.png"], key=natural_key)
    ['a.png', 'b9.png', 'b10.png']
    """
    parts = re.split(r"([0-9]+)", name)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]
    return [*key, (2, 0, name)]  # a01 and a1, A and a: some order, always the same


def _pictures_below(folder: Path) -> tuple[str, ...]:
    from PIL import Image

    extensions = {end for end, kind in Image.registered_extensions().items() if kind in READABLE}
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions:
                found.append((Path(parent) / name).relative_to(folder).as_posix())
    return tuple(sorted(found, key=natural_key))


def picture_digests(dataset: DataSet) -> dict[str, str]:
    """SHA-256 (hexadecimal) of every picture's file, by name; raises FileError for one that cannot be read."""
    return {name: _sha256(dataset.path(name)) for name in dataset.names}


def candidate_folders(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders in which a named set is looked for, first to last."""
    roots = [data_dir, os.environ.get(DATA_VARIABLE)]
    folders = [Path(root) / name for root in roots if root]
    folders += [Path(root) for root in roots if root]  # the folder named may be the set itself
    checkout = Path(__file__).resolve().parents[2]
    return [*folders, Path("..", "shared", "data", name), checkout.parent / "shared" / "data" / name]


def _find_other(name: str, data_dir: str | os.PathLike[str] | None) -> DataSet:
    wanted = OTHER_SETS[name]
    for folder in candidate_folders(name, data_dir):
        if folder.is_dir() and len(found := _pictures_below(folder)) == wanted.pictures:
            return DataSet(name, folder, found)
    raise FileError(
        f"the data set {name} is not on this machine: no folder with {wanted.what}",
        advice=f"put them into a folder {name} and name the folder around it with --data-dir or ${DATA_VARIABLE}",
    )


# --------------------------------------------------------------------------------------------------------------- Kodak


def kodak_candidates(data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders in which Kodak is looked for, first to last."""
    return candidate_folders(KODAK, data_dir)


def _find_kodak(data_dir: str | os.PathLike[str] | None, announce: Callable[[str], None] | None) -> DataSet:
    for folder in kodak_candidates(data_dir):
        if any((folder / name).is_file() for name in KODAK_SHA256):
            check_kodak(folder)
            return DataSet(KODAK, folder, tuple(KODAK_SHA256))
    folder = kodak_cache()
    if announce is not None and not all((folder / name).is_file() for name in KODAK_SHA256):
        announce(f"downloading the Kodak set (24 pictures, 15 MB) from {KODAK_URL} into {folder}")
    download_kodak(folder, KODAK_URL)
    return DataSet(KODAK, folder, tuple(KODAK_SHA256))


def kodak_cache() -> Path:
    """Where the downloaded set is kept: in the user's cache. Raises HpcmError when the package pooch is missing, or the user's home."""
    if home() is None and not os.environ.get("XDG_CACHE_HOME"):
        raise HpcmError(
            "this user has no home folder to keep the Kodak set in", advice="name the folder around it with --data-dir"
        )
    return Path(_pooch().os_cache("hpcm-codec")) / KODAK


def check_kodak(folder: Path) -> None:
    """Raises FileError naming the files that are missing from the folder, or that are not what they should be."""
    missing = [name for name in KODAK_SHA256 if not (folder / name).is_file()]
    if missing:
        raise FileError(
            f"not the whole Kodak set, {_listed(missing)} missing", file=folder, advice="complete the folder"
        )
    wrong = [name for name, digest in KODAK_SHA256.items() if _sha256(folder / name) != digest]
    if wrong:
        raise FileError(
            f"not the Kodak set, {_listed(wrong)} with a wrong SHA-256", file=folder, advice="get these files again"
        )


def download_kodak(folder: Path, url: str = KODAK_URL) -> None:
    """Download what is missing or damaged in `folder`, and check all of it.

    Raises HpcmError when the package pooch is missing or the network fails, FileError when a file has a wrong SHA-256.
    """
    registry = {name: f"sha256:{digest}" for name, digest in KODAK_SHA256.items()}
    source = _pooch().create(path=folder, base_url=url, registry=registry)
    import requests

    for name in registry:
        try:
            source.fetch(name)
        except requests.RequestException as error:
            raise HpcmError(
                f"{url}{name} cannot be downloaded ({type(error).__name__})",
                advice=f"put the Kodak set into a folder {KODAK} and name the folder around it with --data-dir",
            ) from error
        except OSError as error:
            raise file_error(folder / name, error) from error
        except ValueError as error:  # how pooch says that the SHA-256 differs
            raise FileError("what was downloaded has a wrong SHA-256", file=f"{url}{name}") from error


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise HpcmError(
            "the Kodak set is not on this machine, and the package pooch, which downloads it, is not installed",
            advice=f"pip install pooch, or name a folder that holds {KODAK}/ with --data-dir",
        ) from error
    pooch.get_logger().setLevel("WARNING")
    return pooch


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise file_error(path, error) from error


def _listed(names: list[str]) -> str:
    """At most four names, then how many more.

    >>> _listed(list("abcdef"))
    'a, b, c, d and 2 more'
    """
    rest = len(names) - 4
    return ", ".join(names[:4]) + (f" and {rest} more" if rest > 0 else "")
