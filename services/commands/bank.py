"""`cmt bank`: the memory bank's size, upkeep, copies and erasure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands.options import Bank, Config, progress, read_settings
from services.commands.output_folder import check_output
from services.terminal import echo

if TYPE_CHECKING:
    from services.bank.store import BankStore
    from services.bank.writer import BankWriter
    from services.settings import BankSettings

__all__ = ["app"]

app = typer.Typer(help="Look at the memory bank and keep it in order.", no_args_is_help=True)


@app.command("stats")
def stats(
    config: Config = None,
    bank: Bank = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Size, version and age of the bank."""
    settings = read_settings(config, bank__uri=bank)
    from services.bank.summary import summarise

    figures = summarise(settings.bank)
    echo(json.dumps(figures) if as_json else "\n".join(f"{key:20} {value}" for key, value in figures.items()))


@app.command("optimize")
def optimize(config: Config = None, bank: Bank = None) -> None:
    """Merge all fragments and index segments, and remove old versions; ingest must not run."""
    settings = read_settings(config, bank__uri=bank)
    with _writer(settings.bank) as writer:
        report = writer.optimize()
    echo(
        f"{report.fragments_removed} fragments became {report.fragments_added}, {report.versions_removed} old versions "
        f"with {report.bytes_removed} bytes removed, {report.seconds:.1f} s"
    )


@app.command("purge")
def purge(
    doc: Annotated[str, typer.Option("--doc", help="Id of the document.")],
    namespace: Annotated[str, typer.Option(help="Namespace of the document.")] = "default",
    config: Config = None,
    bank: Bank = None,
) -> None:
    """Erase all versions of a document, in older versions of the table too; ingest must not run."""
    settings = read_settings(config, bank__uri=bank)
    with _writer(settings.bank) as writer:
        removed = writer.purge(doc, namespace)
    echo(f"{removed} rows of {doc!r} erased")
    if removed:
        progress.print("its record in Kafka is not: delete it there too (a record with the key and no value)")


@app.command("reindex")
def reindex(
    config: Config = None,
    bank: Bank = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Also a bank of this checkpoint: fills in what older versions did not write."),
    ] = False,
    wait_s: Annotated[float, typer.Option(min=0, help="Seconds to wait for ingest to end before the switch.")] = 86400,
) -> None:
    """Encode the bank again with the checkpoint of the settings, while the old memories serve and ingest goes on.

    Before the switch it waits for ingest with the old checkpoint to be stopped.
    """
    settings = read_settings(config, bank__uri=bank)
    from services.bank.reindex import reindex_bank
    from services.bank.schema import BankLayout
    from services.commands.encoding import encoder
    from services.models import fetch_models, load_cmt

    _store(settings.bank).existing()  # told before the model is fetched
    fetch_models(settings.model, progress)
    model = load_cmt(settings)
    layout = BankLayout(model.model_id, model.d_key, model.memory_bytes)
    rows = reindex_bank(
        settings.bank.uri,
        settings.bank.options(),
        layout,
        encoder(model),
        again=again,
        ann_rows=settings.bank.ann_rows,
        lock_wait_s=wait_s,
        report=lambda line: progress.print(line),
    )
    echo(f"{rows} rows are now of checkpoint {model.model_id}; start ingest and reload the service with it")


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="Parquet file to write.")], config: Config = None, bank: Bank = None
) -> None:
    """Copy the bank with its history to a Parquet file; ingest may run."""
    settings = read_settings(config, bank__uri=bank)
    from services.bank.transfer import export_bank

    check_output(file, "the file")
    echo(f"{export_bank(_store(settings.bank), file)} rows written to {file}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Parquet file that `cmt bank export` wrote.")],
    config: Config = None,
    bank: Bank = None,
) -> None:
    """Fill a new bank from an exported file."""
    settings = read_settings(config, bank__uri=bank)
    from services.bank.transfer import import_bank

    echo(f"{import_bank(_store(settings.bank), file)} rows read from {file}")


def _store(settings: BankSettings) -> BankStore:
    from services.bank.store import BankStore

    return BankStore(settings.uri, settings.options())


def _writer(settings: BankSettings) -> BankWriter:
    """The one writer of a bank that exists, in the bank's own layout, without upkeep of its own."""
    from services.bank.schema import BankLayout
    from services.bank.writer import BankWriter

    return BankWriter(
        settings.uri,
        BankLayout.from_schema(_store(settings).existing().schema),
        0,
        settings.options(),
        maintain_every=0,
        ann_rows=settings.ann_rows,
        lock_wait_s=0.0,
    )
