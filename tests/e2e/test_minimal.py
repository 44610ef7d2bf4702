"""ci/minimal on a cluster: feed to answer, every pod killed under load, upgrade and rollback, what may reach what, uninstall.

The tests are in order and share one release: what one leaves is what the next finds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Namespace, helm, kubectl
from tests.e2e.installed import IMAGE, MARKER, Release, hands_out_tokens
from tests.waiting import until

pytestmark = pytest.mark.timeout(2400)
PODS = [("ingest", "worker"), ("ingest", "head"), ("query", "worker"), ("query", "head")]
SENT = 60
QUESTION = "Who unveiled the observatory of Ravnkilde?"


@pytest.fixture(scope="module")
def release(stage: Namespace, chart: Path) -> Release:
    made = Release(stage, chart, "minimal")
    made.start()
    return made


@pytest.fixture(scope="module")
def stranger() -> Iterator[Namespace]:
    """Another namespace, with a client and nothing else."""
    made = Namespace("cmt-e2e-stranger")
    made.apply("client", IMAGE=IMAGE)
    yield made
    kubectl("delete", "namespace", made.name, "--timeout=120s", timeout_s=150)


def test_from_a_feed_to_an_answer(release: Release) -> None:
    release.send(MARKER)
    release.answers(QUESTION, "marker")


def test_helm_test_passes(release: Release) -> None:
    said = helm("test", release.name, "--namespace", release.namespace.name, "--timeout", "10m", timeout_s=660)
    assert re.search(r"Phase: +Succeeded", said), said


def test_every_pod_is_admitted_as_restricted(release: Release) -> None:
    """The namespace enforces it, and no Ray pod was refused or had to be changed for it."""
    pods = release.namespace.found("pods", release.selector())
    assert len(pods) == 4
    refused = release.namespace.kubectl("get", "events", "--output=jsonpath={.items[*].message}")
    assert "violates PodSecurity" not in refused
    for one in pods:
        assert one["spec"]["securityContext"]["runAsNonRoot"] is True
        everything = one["spec"]["containers"] + one["spec"].get("initContainers", [])
        assert all(part["securityContext"]["capabilities"]["drop"] == ["ALL"] for part in everything)


def test_policies_let_clients_ask_and_nothing_else(release: Release, stranger: Namespace) -> None:
    """Each closed door is knocked at beside an open one, so that a dead target is no proof."""
    address = {role: release.address("ingest", role) for role in ("head", "worker")}
    query = release.address("query", "worker")
    service = f"{release.name}-cmt-query.{release.namespace.name}"
    kafka = f"kafka.{release.namespace.name}"
    outside = address_of(stranger)
    stranger.exec("client", "sh", "-c", "cd /tmp; python -m http.server 8099 >/dev/null 2>&1 &")
    until(lambda: release.connects(query, 8000), 60.0, every_s=1)  # a client of the namespace
    assert stranger_connects(release, stranger, kafka, 9092)  # the stranger has a network
    assert not stranger_connects(release, stranger, service, 8000)
    assert not release.connects(address["head"], 8265)  # Ray's dashboard runs code for whoever reaches it
    assert not release.connects(address["head"], 6379)
    assert release.connects("kafka", 9092)
    head = release.pod("ingest", "head")
    assert release.connects(address["worker"], 52365, pod=head)  # pods of one cluster
    assert not release.connects(query, 8000, pod=head)  # and not of the other
    assert release.connects(outside, 8099)  # a server of another namespace: the client reaches it, the ingest does not
    assert not release.connects(outside, 8099, pod=head)


def stranger_connects(release: Release, stranger: Namespace, host: str, port: int) -> bool:
    return release.connects(host, port, namespace=stranger)


def address_of(namespace: Namespace) -> str:
    (one,) = namespace.found("pods", "part=client")
    return str(one["status"]["podIP"])


@pytest.mark.parametrize(("component", "role"), PODS)
def test_a_pod_killed_under_load_costs_no_document(release: Release, component: str, role: str) -> None:
    with release.load(f"{component}-{role}", SENT) as result:
        time.sleep(5)  # some documents are under way
        killed = release.kill(component, role)
        until(lambda: release.pod(component, role) not in ("", killed), 600.0, every_s=2, seen=release.state)
    print(
        f"\n{component} {role}: answered {result['answered']}, refused {result['refused']}, gap {result['longest_gap_s']:.0f} s"
    )
    assert len(result["sent"]) == SENT
    assert set(result["refused"]) <= {"503", "no connection"}
    release.until_ready()
    release.until_all_are_there(result["sent"])
    release.answers(QUESTION, "marker")
    if component == "ingest":  # the query service had no reason to fail
        assert not result["refused"]


def test_a_wrong_value_is_refused_in_one_line(release: Release) -> None:
    said = release.refused("--set", "query.replicas.max=many")
    assert "query" in said
    assert "max" in said
    said = release.refused("--set", "ingress.enabled=true", "--set", "ingress.host=news.example")
    assert "without a key" in said
    if not hands_out_tokens():
        said = release.refused("--set", "ray.tokenAuth=true")
        assert "set ray.tokenAuth=false" in said


def test_an_upgrade_and_its_rollback_leave_the_answers(release: Release) -> None:
    before = release.job()
    release.install("--set", "settings.ingest.batch_windows=8")
    until(lambda: release.job() not in ("", before), 120.0, every_s=1)
    release.until_ready()
    release.send(
        {"id": "after-upgrade", "title": "Mill", "text": "The mill of Sandhamn was sold to the baker Ilse Brandt."}
    )
    release.answers("Who bought the mill of Sandhamn?", "after-upgrade")
    helm("rollback", release.name, "--namespace", release.namespace.name)
    until(lambda: release.job() == before, 120.0, every_s=1)
    release.until_ready()
    release.send(
        {"id": "after-rollback", "title": "Ferry", "text": "The ferry of Lundevik was named Alma by Pastor Grae."}
    )
    release.answers("Who named the ferry of Lundevik?", "after-rollback")


def test_uninstall_leaves_the_bank_and_a_new_release_answers_from_it(release: Release) -> None:
    release.uninstall()
    (claim,) = release.namespace.found("persistentvolumeclaims")
    assert claim["status"]["phase"] == "Bound"
    release.start()
    release.answers(QUESTION, "marker")
