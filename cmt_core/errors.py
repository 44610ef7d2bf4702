"""The error tree of the method.

CoreError
├── ConfigError          a configuration that can't work (unknown key, parts that don't combine)
├── ModelSourceError     a model or wheel that can't be found, fetched or verified
├── UnsupportedModelError  an LLM family whose keys and values can't be read and written here
├── CheckpointError      a checkpoint that is damaged or belongs to another LLM
├── MissingPackageError  an optional package that this needs is not installed
├── MemoryFormatError    a packed memory whose size or layout is not this checkpoint's
├── BankFileError        a saved bank that can't be read or written
└── DataError            a dataset row that can't be read; says file and line

Every class says whether trying again can help (`retriable`).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

__all__ = [
    "BankFileError",
    "CheckpointError",
    "ConfigError",
    "CoreError",
    "DataError",
    "MemoryFormatError",
    "MissingPackageError",
    "ModelSourceError",
    "UnsupportedModelError",
    "one_line",
    "unreadable",
]


_MAX_DETAIL_CHARS = 240


def one_line(error: BaseException) -> str:
    """A library's error text as one line of bounded length, or the error's name when it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_DETAIL_CHARS else f"{text[:_MAX_DETAIL_CHARS]} ..."


class CoreError(Exception):
    """Base of all errors of `cmt_core`; its text is one line fit for a user."""

    retriable: ClassVar[bool] = False


class ConfigError(CoreError):
    """A configuration value is unknown, out of range, or does not combine with another."""


class ModelSourceError(CoreError):
    """A model can't be found, fetched or verified."""

    retriable = True


class UnsupportedModelError(CoreError):
    """The LLM's family has no separate key/value projections with rotary positions."""


class CheckpointError(CoreError):
    """A checkpoint is damaged, incomplete, or was trained for another LLM."""


class MemoryFormatError(CoreError):
    """A packed memory does not have this checkpoint's layout."""


class MissingPackageError(CoreError):
    """An optional package is needed and not installed; the text says how to get it."""


class BankFileError(CoreError):
    """A saved bank can't be read or written; the text names the folder."""


class DataError(CoreError):
    """A dataset row can't be read; the text names file and line."""


def unreadable(path: Path, error: BaseException) -> DataError:
    """The DataError of a data set's file: its absolute path, and why."""
    why = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
    return DataError(f"{path.absolute()} can't be read: {why}")
