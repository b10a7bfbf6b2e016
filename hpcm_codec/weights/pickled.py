"""State dictionaries in files of `torch.save`, read without running anything that they hold."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from typing import Any

import torch
from torch import Tensor

from hpcm_codec.errors import FileError, HpcmError, UnsupportedError, listed
from hpcm_codec.weights.identity import AGAIN

_ZIP = b"PK\x03\x04"
_SCRIPT = "/constants.pkl"  # which torch.jit.save writes and torch.save does not
_WRAPPER = "module."  # what torch.nn.DataParallel puts before every name
_OBJECT = re.compile(r"GLOBAL ([\w.]+)")  # in torch's message about an object that it does not unpickle
_EXPECTED = (
    "a state dictionary is expected, tensors by name, alone or under 'state_dict': torch.save(model.state_dict(), FILE)"
)


def read_state(content: bytes) -> dict[str, Tensor]:
    """The tensors of a state dictionary by name, in the types that they have, on the CPU, in torch's ordinary layout.

    content: of a file of `torch.save`. The dictionary may lie in another one, under "state_dict". The names lose the "module." before all.
    Raises FileError for what is damaged, UnsupportedError for everything else that is no such dictionary.
    """
    loaded = _unpickled(content)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(name, str) for name in loaded):
        raise UnsupportedError("not a dictionary of tensors", advice=_EXPECTED)
    others = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise UnsupportedError(f"entries that are no tensors: {listed(others)}", advice=_EXPECTED)
    for name, value in loaded.items():
        if value.layout != torch.strided or value.is_nested or value.device.type != "cpu":
            kind = "nested" if value.is_nested else f"of layout {value.layout}, on device {value.device}"
            raise UnsupportedError(f"{listed([name])} is {kind}", advice="save dense tensors with values")
    if all(name.startswith(_WRAPPER) for name in loaded):
        return {name.removeprefix(_WRAPPER): value for name, value in loaded.items()}
    return dict(loaded)


def _unpickled(content: bytes) -> Any:
    try:
        if content.startswith(_ZIP):
            _check_archive(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's are about how the file was written
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except HpcmError:
        raise
    except Exception as error:  # any: damaged bytes are commands to the unpickler, and these may fail in every way
        # Without torch's own message, which advises to run what is pickled.
        found = _OBJECT.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found is not None:
            reason = (
                f"it holds {listed([found[1]])}, which is no tensor, and which is not read, since it could run anything"
            )
            raise UnsupportedError(reason, advice=_EXPECTED) from error
        raise FileError("damaged, or no file of torch.save", advice=AGAIN) from error


def _check_archive(content: bytes) -> None:
    """Raise FileError for a zip archive with a wrong CRC-32, which `torch.load` does not check, UnsupportedError for TorchScript's."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (broken := archive.testzip()) is not None:
            raise FileError(f"damaged: the CRC-32 of {listed([broken])} in it is wrong", advice=AGAIN)
        if any(name.endswith(_SCRIPT) for name in archive.namelist()):
            raise UnsupportedError("a TorchScript archive, a program with its weights", advice=_EXPECTED)
