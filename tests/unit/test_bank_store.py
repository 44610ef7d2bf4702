"""Claims about filters, maintenance tiers and error texts of the bank."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from services.bank.filters import of_documents, quoted, visible
from services.bank.location import local_folder, one_spelling
from services.bank.maintenance import is_due, tier_targets
from services.bank.store import BankStore, WriterLock, bank_errors
from services.errors import BankFull, BankUnavailable


def test_quotes_are_doubled() -> None:
    assert quoted("it's 'x'") == "'it''s ''x'''"


def test_documents_are_grouped_by_namespace() -> None:
    where = of_documents([("news", "a"), ("blog", "a"), ("news", "b")])
    assert where == "((namespace = 'news' AND doc_id IN ('a', 'b')) OR (namespace = 'blog' AND doc_id IN ('a')))"


def test_as_of_is_compared_in_utc() -> None:
    moment = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert "ingested_at <= timestamp '2026-01-01T00:00:00.000000+00:00'" in visible(moment, moment)


def test_naive_as_of_is_refused() -> None:
    with pytest.raises(ValueError, match="as_of must carry a time zone"):
        visible(datetime.now(UTC), datetime(2026, 1, 1))


def test_largest_fragment_is_an_eighth_of_a_gibibyte() -> None:
    assert tier_targets(row_bytes=37_632) == [1024, 3566]
    assert tier_targets(row_bytes=2**30) == [1024]
    assert tier_targets(row_bytes=1024) == [1024, 128 * 1024]


@pytest.mark.parametrize(
    ("rows", "target_rows", "due"),
    [
        ([32] * 7, 1024, False),
        ([32] * 8, 1024, True),
        ([1024, 1024, 1024], 3566, False),
        ([1024, 1024, 1024, 600], 3566, True),
        ([4000], 3566, False),
    ],
)
def test_merge_is_due_when_it_makes_a_real_difference(rows: list[int], target_rows: int, due: bool) -> None:
    assert is_due(rows, target_rows) is due


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("lance error: LanceError(IO): failed to write, No space left on device (os error 28), x.rs:1:2"),
    ],
)
def test_full_disk_is_told_apart(error: Exception) -> None:
    with pytest.raises(BankFull, match="no space is left on its disk"), bank_errors("./b"):
        raise error


def test_error_of_the_table_is_one_line_without_its_source_location() -> None:
    wrapped = RuntimeError("lance error: LanceError(IO): manifest is broken, /cargo/lance/utils.rs:224:20\nmore")
    with pytest.raises(BankUnavailable) as caught, bank_errors("./b"):
        raise wrapped
    assert str(caught.value) == "bank ./b can't be used: manifest is broken"


def test_object_store_has_no_folder() -> None:
    assert BankStore("s3://bucket/bank").folder is None
    BankStore("s3://bucket/bank").require_free(2**62)


SPELLINGS = (
    "{folder}",
    "{folder}/",
    "{parent}/./x/../my bank",
    "my bank",
    "./my bank/",
    "{link}",
    "file://{url}",
    "file://{url}/",
    "FILE://{url}",
    "file:{url}",
    "file://localhost{url}",
    "file://{link}",
)


def spelled(spelling: str, folder: Path) -> str:
    """One spelling of the folder; the working directory is its parent, and `link` beside it leads there."""
    url, link = str(folder).replace(" ", "%20"), folder.parent / "link"
    return spelling.format(folder=folder, parent=folder.parent, url=url, link=link)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_lock_holds_for_every_spelling_of_a_folder(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my bank"
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    holder, other = WriterLock(BankStore(str(folder))), WriterLock(BankStore(spelled(spelling, folder)))
    holder.acquire(0)
    with pytest.raises(BankUnavailable, match=rf"another writer has it open \(process {os.getpid()}\)"):
        other.acquire(0)
    holder.release()
    other.acquire(0)
    with pytest.raises(BankUnavailable, match="another writer has it open"):
        holder.acquire(0)
    other.release()
    assert one_spelling(spelled(spelling, folder)) == str(folder)


def test_other_folders_have_locks_of_their_own(tmp_path: Path) -> None:
    names = ("bank", "bank%20x", "bank x", "b#x", "b?x=1", "a:b", "ünï")
    locks = [WriterLock(BankStore(str(tmp_path / name))) for name in names]
    locks.append(WriterLock(BankStore(f"file://{tmp_path}/bank%2520y")))
    for lock in locks:
        lock.acquire(0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "bank%20y"])
    assert len({one_spelling(str(tmp_path / name)) for name in names}) == len(names)
    for lock in locks:
        lock.release()


@pytest.mark.parametrize(
    "uri",
    ["file://host/bank", "file:", "file://", "file:bank", "file:///a?b", "file:///a#b", "file:///%ff", "file://[x/a"],
)
def test_file_url_that_names_no_folder_of_this_machine_is_one_line(uri: str) -> None:
    with pytest.raises(BankUnavailable, match=r"^bank [^\n]*: set bank\.uri to a path[^\n]*$"):
        BankStore(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/bank", "gs://bucket/bank", "memory://bank", "s3+ddb://bucket/bank"])
def test_object_stores_are_no_folders(uri: str) -> None:
    assert local_folder(uri) is None
    assert one_spelling(f"{uri}/") == one_spelling(uri) == uri
