"""Files that others may read, too: safetensors writes files that their owner alone can read, whatever the umask says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["save_tensors", "share"]


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that everybody may read whom the umask lets."""
    from safetensors.torch import save_file

    save_file(tensors, path)
    share(path)


def share(*paths: Path) -> None:
    """Gives files and folders the mode that the umask leaves a new one."""
    mask = os.umask(0)
    os.umask(mask)
    for path in paths:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
