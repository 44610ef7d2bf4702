"""ci/s3 on a cluster: the bank in an object store, keys, and a checkpoint that is exchanged by `helm upgrade` under load."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.cluster import PARTS, Namespace
from tests.e2e.installed import MARKER, Release
from tests.waiting import until

pytestmark = pytest.mark.timeout(2400)
S3_IMAGE = os.environ.get("E2E_S3_IMAGE", "motoserver/moto:5.1.0")
QUESTION = "Who unveiled the observatory of Ravnkilde?"
KEY = "a-key-for-tests-0123456789"
NEXT = ["--set=settings.model.checkpoint=/var/cache/cmt/next", "--set=bank.s3.uri=s3://news/next"]
FILL = ["--set=query.enabled=false", "--set=settings.kafka.group_id=cmt-ingest-fill"]
# the shipped checkpoint under another name: memories of the two are never mixed, and its answers are known to be good
_COPY = """
import json, pathlib, shutil
from cmt_core.shipped import SHIPPED
made = pathlib.Path("/var/cache/cmt/next")
shutil.copytree(SHIPPED, made, dirs_exist_ok=True)
config = json.loads((made / "config.json").read_text())
config["training"]["note"] = "another checkpoint"
(made / "config.json").write_text(json.dumps(config))
"""


@pytest.fixture(scope="module")
def release(stage: Namespace, chart: Path, disk: Callable[[Namespace, str], None]) -> Release:
    stage.apply("store", IMAGE=S3_IMAGE)
    bucket = "import urllib.request as r; r.urlopen(r.Request('http://store:9000/news', method='PUT'), timeout=9); "
    bucket += "print('made')"
    make = lambda: stage.exec("client", "python", "-c", bucket, check=False)  # noqa: E731
    until(lambda: "made" in make(), 60.0, every_s=1, seen=make)  # a ready pod's Service is known a moment later
    disk(stage, "models")
    stage.kubectl("apply", "-f", str(PARTS / "models.yaml"))
    stage.secret("store", access_key_id="id", secret_access_key="secret")
    stage.secret("client-key", api_key=KEY)
    stage.secret("cmt-keys", api_keys=json.dumps({"tests": hashlib.sha256(KEY.encode()).hexdigest()}))
    made = Release(stage, chart, "s3", "s3", key=KEY)
    made.start()
    made.send(MARKER)
    return made


def test_from_a_feed_to_an_answer_out_of_the_store(release: Release) -> None:
    release.answers(QUESTION, "marker")
    objects = (
        "import urllib.request as r; print(r.urlopen('http://store:9000/news?list-type=2', timeout=9).read().decode())"
    )
    assert ".lance" in release.namespace.exec("client", "python", "-c", objects)


def test_without_a_key_nobody_is_answered(release: Release) -> None:
    assert not release.reaches(f"{release.url}/v1/documents/marker")
    said = release.namespace.exec("client", "cmt", "ask", "--url", release.url, QUESTION, check=False)
    assert "marker" not in said
    assert "key" in said.lower()


def test_a_checkpoint_is_exchanged_by_an_upgrade_under_load(release: Release, chart: Path) -> None:
    """As docs/operations.md says: a second release fills the next bank, then the first one takes it over."""
    pods = {release.pod("query", role) for role in ("head", "worker")}
    release.namespace.exec(release.pod("ingest", "head"), "python", "-c", _COPY)
    filling = Release(release.namespace, chart, "s3", "s3", name="fill", key=KEY)
    filling.install(*FILL, *NEXT)
    filling.until_ready("ingest")
    status = ["cmt", "ingest", "status", "--json"]
    until(
        lambda: '"lag": 0' in filling.namespace.exec(filling.pod("ingest", "head"), *status, check=False),
        300.0,
        every_s=3,
        seen=filling.state,
    )
    with release.load("swap", 120, rate=1.0) as result:
        before = release.job()
        release.install(*NEXT)
        until(lambda: release.job() not in ("", before), 240.0, every_s=1, seen=release.state)
        release.until_ready("ingest")
        filling.uninstall()
    print(f"\nswap: answered {result['answered']}, refused {result['refused']}, gap {result['longest_gap_s']:.0f} s")
    assert not result["refused"]  # nobody was turned away
    assert len(result["sent"]) == 120
    assert {release.pod("query", role) for role in ("head", "worker")} == pods  # and no pod was exchanged
    release.until_all_are_there(result["sent"])  # they are in the next bank alone
    release.answers(QUESTION, "marker")
