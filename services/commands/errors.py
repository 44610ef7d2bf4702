"""What goes wrong in a command, as one line on stderr and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cmt_core.errors import ConfigError, CoreError
from services.commands.options import progress
from services.errors import ServiceError
from services.extras import missing_extra
from services.terminal import on_one_line

__all__ = ["one_line_errors"]

_MODEL, _SETTINGS, _OTHER = 7, 2, 1


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raises SystemExit instead of any error of the block, after its line was printed."""
    try:
        yield
    except ServiceError as error:
        _fail(str(error), error.exit_code)
    except CoreError as error:
        _fail(str(error), _SETTINGS if isinstance(error, ConfigError) else _MODEL)
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(_file_error(error), _OTHER)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (line := missing_extra(error)) is not None:
            _fail(line, _SETTINGS)
        logging.getLogger(__name__).debug("the trace", exc_info=error)
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        _fail(f"{type(error).__name__}: {first} (a bug; CMT_LOG_LEVEL=DEBUG shows where)", _OTHER)


def _file_error(error: OSError) -> str:
    if not error.filename:
        return str(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return f"{os.path.abspath(name)}: {error.strerror or error}"  # noqa: PTH100 - a name may be of bytes, or no path


def _fail(line: str, code: int) -> None:
    progress.print(on_one_line(f"cmt: {line}"), style="red", soft_wrap=True)
    sys.exit(code)
