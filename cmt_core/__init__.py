"""CMT: a growing memory for a frozen language model, as keys and values that it already knows how to read.

    from cmt_core import MemoryBank

    bank = MemoryBank()
    bank.add("The Tarn ferry sails from pier 9 since Monday.", title="New pier")
    print(bank.ask("From which pier does the Tarn ferry sail?").text)

What `__all__` names is the public surface: until 1.0 a minor version may change it and CHANGELOG.md says so, a patch version does
not. Everything else may change at any time. Names are imported when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmt_core.errors import CoreError
    from cmt_core.memory_bank import BankAnswer, BankHit, Entry, MemoryBank
    from cmt_core.model import CMT

__all__ = ["CMT", "BankAnswer", "BankHit", "CoreError", "Entry", "MemoryBank"]

__version__ = metadata.version("cmt-memory")

_HOMES = {"CMT": "model", "CoreError": "errors"} | dict.fromkeys(
    ("BankAnswer", "BankHit", "Entry", "MemoryBank"), "memory_bank"
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
