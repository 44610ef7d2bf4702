"""`cmt ingest` in a process of its own, with the small lexical model: settings come from CMT_* variables.

python -m tests.faults.ingest_process [--until-caught-up]
"""

from __future__ import annotations

import sys

from rich.console import Console

from services.ingest.run import run_ingest
from services.settings import load_settings
from services.testing.lexical import load_lexical

if __name__ == "__main__":
    caught_up = "--until-caught-up" in sys.argv
    run_ingest(load_settings(), until_caught_up=caught_up, console=Console(stderr=True), model_factory=load_lexical)
