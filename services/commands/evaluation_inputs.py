"""What the evaluation commands share: their options, the checkpoint and the questions they name, and where figures go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.commands.options import progress, read_settings
from services.errors import SettingsError
from services.terminal import echo

if TYPE_CHECKING:
    from cmt_core.data.qa import QAExample
    from services.settings import Settings

__all__ = [
    "SQUAD",
    "Dataset",
    "Experiment",
    "K",
    "Numbers",
    "Out",
    "Questions",
    "Seed",
    "Systems",
    "floats",
    "integers",
    "names",
    "say",
]

Dataset = Annotated[str, typer.Option(help="Dataset inside data_dir, a path, or hf:NAME:SPLIT.")]
Questions = Annotated[int, typer.Option(min=1, help="Questions asked, the same ones everywhere.")]
Systems = Annotated[
    str,
    typer.Option(
        help="Of select, auto, single_context, stack, rag_prefix, rag_likely, rag_bare, closed, closed_prefix; comma-separated."
    ),
]
K = Annotated[int, typer.Option("--k", min=1, help="Documents read per question.")]
Seed = Annotated[int, typer.Option(help="Seed of the choice of documents and questions.")]
Out = Annotated[Path, typer.Option(help="Folder for the table, the JSON and the plot.")]
Numbers = Annotated[str, typer.Option(help="Comma-separated numbers.")]

SQUAD = "squad_dev.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One evaluation's inputs, as the command line gave them; each is read when it is first asked for."""

    settings: Settings
    dataset: str
    questions: int
    k: int
    seed: int

    @classmethod
    def of(cls, config: Path | None, dataset: str, questions: int, k: int, seed: int) -> Experiment:
        """With the settings of a file; raises SettingsError."""
        return cls(read_settings(config), dataset, questions, k, seed)

    def model(self, checkpoint: Path | str | None = None) -> Any:
        """The CMT of the settings, or of another checkpoint."""
        from services.models import load_cmt

        if checkpoint is None:
            return load_cmt(self.settings)
        chosen = self.settings.model.model_copy(update={"checkpoint": str(checkpoint)})
        return load_cmt(self.settings.model_copy(update={"model": chosen}))

    def examples(self, since: str | None = None) -> list[QAExample]:
        """The dataset's rows, from the date `since` on (YYYY-MM-DD, as the rows' own dates); SettingsError when none is left."""
        from cmt_core.data.readers import read_examples

        hub = self.dataset.startswith("hf:")
        rows = list(read_examples(self.dataset if hub else self.path(self.dataset)))
        if since is not None:
            rows = [row for row in rows if row.date >= since]
            if not rows:
                raise SettingsError(f"{self.dataset} has no question dated {since} or later")
        return rows

    def path(self, name: str) -> Path:
        """A file as it is, or inside data_dir."""
        path = Path(name) if Path(name).exists() else self.settings.data_dir / name
        if not path.exists():
            raise SettingsError(
                f"data set {path.absolute()} does not exist: set data_dir (CMT_DATA_DIR), or name another"
            )
        return path

    def write(self, out: Path, name: str, points: Sequence[Any], x: str, y: str, x_label: str) -> None:
        """The figures as a table, JSON and a plot in `out`; prints their paths."""
        from cmt_core.evaluation.report import write_experiment

        about = {"dataset": self.dataset, "k": self.k, "questions": self.questions, "seed": self.seed}
        about = {
            key: value for key, value in about.items() if key != "k" or value
        }  # rows with a k of their own have none
        for path in write_experiment(out, name, points, x=x, y=y, x_label=x_label, about=about):
            echo(str(path))


def names(systems: str) -> list[str]:
    """Comma-separated names."""
    return [name.strip() for name in systems.split(",") if name.strip()]


def integers(numbers: str) -> list[int]:
    """Comma-separated whole numbers."""
    return [int(number) for number in floats(numbers)]


def floats(numbers: str) -> list[float]:
    """Comma-separated numbers; raises SettingsError."""
    try:
        found = [float(part) for part in numbers.split(",") if part.strip()]
    except ValueError:
        raise SettingsError(f"{numbers!r} is not a list of numbers like 50,200,500") from None
    if not found:
        raise SettingsError("at least one number is needed")
    return found


def say(line: str) -> None:
    """Progress, on stderr."""
    progress.print(line)
