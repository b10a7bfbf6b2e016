"""Output files that are written whole or not at all.

`write_atomically` writes under a temporary name beside its target and moves the result into place in one step. A reader of the
target sees the old file, no file, or the complete new file. A full disk or Ctrl-C leaves no temporary file; `kill -9` may leave one,
which `temporaries.remove_left_behind` removes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from hpcm_codec.errors import FileError, HpcmError
from hpcm_codec.system.temporaries import temporary_in

Content = bytes | bytearray | memoryview | Callable[[BinaryIO], object]

_REASONS = {
    errno.ENOENT: ("no such file or directory", "check the path"),
    errno.ENOTDIR: ("part of the path is not a directory", "check the path"),
    errno.EACCES: ("permission denied", "check the permissions of the file and its directory"),
    errno.EPERM: ("operation not permitted", "check the permissions of the file and its directory"),
    errno.EROFS: ("the file system is read-only", "choose another place"),
    errno.EISDIR: ("is a directory", "name a file"),
    errno.EEXIST: ("exists already", "choose another name, or overwrite it with -f"),
    errno.ENOSPC: ("no space left on the device", "free some space, or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another place"),
    errno.EFBIG: ("larger than the file system or a limit allows", "choose another place"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}
# errors of os.link on file systems without hard links
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.EINVAL}


def file_error(path: str | os.PathLike[str], error: OSError) -> FileError:
    """The operating system's error about `path` as a FileError."""
    reason, advice = _REASONS.get(
        error.errno or 0, (error.strerror or str(error) or "cannot be used", "check the path")
    )
    return FileError(reason, file=path, advice=advice)


def as_hpcm_error(error: BaseException) -> HpcmError | None:
    """The error itself if it is an HpcmError; an HpcmError for an error of the system; None for a bug."""
    if isinstance(error, HpcmError):
        return error
    if isinstance(error, OSError):
        return file_error(error.filename or "stdout", error)
    # torch raises a RuntimeError of its own on the GPU and a plain one on the CPU
    if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or "can't allocate" in str(error):
        return HpcmError("not enough memory", advice="use a smaller picture, or another machine")
    return None


def write_atomically(path: str | os.PathLike[str], data: Content, overwrite: bool = False) -> None:
    """Make `data` the content of the file `path`; permissions are those of the file it replaces, or of any new one under the umask.

    data:      the bytes, or a function that writes them to the binary file it is given.
    overwrite: replace an existing file; otherwise an existing one is kept, even one that appears while we write.
    A device or pipe (such as /dev/null) is written to directly.
    Raises FileError when that is not possible. On any failure, KeyboardInterrupt included, the temporary file is removed and the target
    is unchanged. An error that `data` raises, other than OSError, is passed on.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not target.is_file():
            _write_to_device(target, data)
            return
        if not overwrite and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if overwrite:
            target = target.resolve()  # the file a link points to is replaced, not the link
        with temporary_in(target.parent) as (temporary, file):
            _fill(file, data)
            file.flush()
            if overwrite:
                _keep_permissions(target, file)
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # Windows does not rename what is open
            _move(temporary, target, overwrite)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise file_error(path, error) from error
        if "\0" in os.fspath(path):
            raise FileError(
                "the name holds a zero byte", file=repr(os.fspath(path)), advice="check the path"
            ) from error
        raise


def _keep_permissions(replaced: Path, file: BinaryIO) -> None:
    """Give a new file the owner, as far as we may, and the permissions of the one that it will replace, if there is one."""
    try:
        found = replaced.stat()
    except OSError:
        return
    if hasattr(os, "fchown"):
        with suppress(OSError):
            os.fchown(file.fileno(), found.st_uid, found.st_gid)
        with suppress(OSError):  # raised on file systems without permissions
            os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))


def _fill(file: BinaryIO, data: Content) -> None:
    if callable(data):
        data(file)
    else:
        file.write(data)


def _write_to_device(path: Path, data: Content) -> None:
    with open(path, "wb") as file:
        _fill(file, data)


def _move(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give `temporary` the name `target` in one step; without `overwrite`, FileExistsError if the name is taken."""
    if overwrite:
        os.replace(temporary, target)
    elif os.name == "nt":
        os.rename(temporary, target)  # on Windows a rename does not replace
    else:
        try:
            os.link(temporary, target)  # unlike a rename, refuses a name that is taken
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # create the name first: then only our own empty file can be replaced
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            try:
                os.replace(temporary, target)
            except BaseException:
                os.unlink(target)
                raise
