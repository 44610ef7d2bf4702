"""What users notice when a replica is killed, the checkpoint is exchanged, or a document is withdrawn: nothing wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client

from services.errors import ServiceError
from services.ingest.pipeline import start_ingest
from services.query.engine.messages import UNKNOWN
from services.query.ray_serve.app import APP_NAME, start, stop
from services.query.ray_serve.reload import reload_service
from services.settings import KafkaSettings
from services.stream.producer import DocumentProducer
from services.stream.record import Document
from services.testing.lexical import load_lexical
from tests.integration.serve_desk import Desk, SlowBatch, SlowModel, ask, client, ray_for, settings_for, slow_model
from tests.waiting import until

GATEWAY_KILLS = int(os.environ.get("GATEWAY_KILLS", "2"))
TOWNS = ("Aarhus", "Samso", "Skagen", "Grenaa", "Ebeltoft", "Viborg", "Randers", "Horsens")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with ray_for():
        yield


@pytest.fixture
def desk(local_ray: None, tmp_path: Path) -> Iterator[Desk]:
    stop()
    desk = Desk(str(tmp_path / "bank"))
    for town in TOWNS:
        desk.publish(town, f"Mayor of {town}", f"{town} elected mayor Person{town} on Monday.")
    yield desk
    desk.close()
    stop()


@dataclass
class Crowd:
    """Clients that ask without a pause, streamed and whole; a wrong answer is kept as such, a refusal by its status."""

    url: str
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(n,), daemon=True) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, number: int) -> None:
        asked = number
        while not self._stopped.is_set():
            town = TOWNS[asked % len(TOWNS)]
            asked += 1
            try:
                text, model = self._ask(f"Who was elected mayor of {town}?", streamed=bool(number % 2))
            except (openai.APIError, httpx.HTTPError) as error:
                self.refused.append(f"{getattr(error, 'status_code', 'in the stream')}: {error!r}")
                continue
            self.models.append(model)
            if f"Person{town}" in text:
                self.right += 1
            else:
                self.wrong.append(f"{town}: {text}")

    def _ask(self, question: str, streamed: bool) -> tuple[str, str]:
        if not streamed:
            reply = ask(self.url, question, max_tokens=12)
            return reply.choices[0].message.content, reply.system_fingerprint
        text, model = "", ""
        for chunk in ask(self.url, question, stream=True, max_tokens=12):
            text += chunk.choices[0].delta.content or ""
            model = chunk.system_fingerprint or model
        return text, model

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=60)


def replica_pids(replicas: int, within_s: float = 30.0) -> set[int]:
    handle = serve.get_deployment_handle("Engine", APP_NAME)
    pids: set[int] = set()

    def all_seen() -> bool:
        with suppress(RayActorError):  # asked while it died
            pids.add(handle.loaded.remote().result(timeout_s=10).pid)
        return len(pids) == replicas

    until(all_seen, within_s)
    return pids


def test_killed_replica_costs_only_answers_in_flight_on_it_and_none_is_wrong(desk: Desk) -> None:
    settings = settings_for(desk.uri, serve__replicas=2)
    crowd = Crowd(start(settings, model_factory=slow_model))
    try:
        until(lambda: crowd.right >= 8, 60.0)
        before = replica_pids(2)
        os.kill(min(before), signal.SIGKILL)
        answered = crowd.right
        until(lambda: crowd.right >= answered + 12, 60.0)
        until(lambda: len(replica_pids(2) - before) == 1, 60.0)  # Serve has started another one
        answered = crowd.right
        until(lambda: crowd.right >= answered + 8, 60.0)
    finally:
        crowd.stop()
    assert crowd.wrong == []
    assert len(crowd.refused) <= 4, crowd.refused  # one for each client that had a question on it, at the most


def breaks_in_the_process_named_in(folder: Path, engine: str) -> Any:
    """A model factory: as soon as `folder` has a file with a process's number, that process's model is of no more use."""
    from services.testing.streamed import StreamedLexical

    def is_broken() -> bool:
        return (folder / str(os.getpid())).exists()

    class BreakingBatch(SlowBatch):
        def step(self) -> dict[int, list[int | None]]:
            if is_broken():
                raise RuntimeError("the device is gone")
            return super().step()

    class Breaking(SlowModel):
        def answer_batch(self) -> BreakingBatch:
            return BreakingBatch(self)

    class BreakingStreamed(StreamedLexical):
        @property
        def lost(self) -> bool:
            return is_broken()

    return lambda settings: Breaking() if engine == "transformers" else BreakingStreamed()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_replica_that_can_not_answer_any_more_takes_no_more_questions(desk: Desk, tmp_path: Path, engine: str) -> None:
    """It refuses at once, so to a router that counts open questions it looks like the one to ask."""
    broken = tmp_path / "broken"
    broken.mkdir()
    settings = settings_for(desk.uri, serve__replicas=2, serve__engine=engine)
    crowd = Crowd(start(settings, model_factory=breaks_in_the_process_named_in(broken, engine)))
    try:
        until(lambda: crowd.right >= 8, 60.0)
        before = replica_pids(2)
        (broken / str(min(before))).touch()
        answered = crowd.right
        until(
            lambda: min(before) not in replica_pids(2, 120.0), 150.0, seen=lambda: crowd.refused
        )  # Serve has started another one
        until(lambda: crowd.right >= answered + 24, 60.0)
    finally:
        crowd.stop()
    assert crowd.wrong == []
    told = [one for one in crowd.refused if "the device is gone" not in one and "internal error" not in one]
    assert len(told) <= 4, crowd.refused  # answers under way, one for each client
    assert len(crowd.refused) - len(told) <= 20  # five failures in a row, until the replica knows, of four clients each


def gateway_pid() -> int | None:
    """The gateway that takes questions; None while there is none."""
    details = _get_global_client().get_serve_details()
    replicas = details["applications"][APP_NAME]["deployments"]["Gateway"]["replicas"]
    return next((one["pid"] for one in replicas if one["state"] == "RUNNING"), None)


@pytest.mark.timeout(200 + 60 * GATEWAY_KILLS)
def test_killed_gateway_costs_streams_under_way_and_no_client_sees_a_500(desk: Desk) -> None:
    crowd = Crowd(start(settings_for(desk.uri), model_factory=slow_model))
    try:
        until(lambda: crowd.right >= 8, 120.0)
        for _ in range(GATEWAY_KILLS):
            killed = until(gateway_pid, 60.0)
            os.kill(killed, signal.SIGKILL)
            until(lambda gone=killed: gateway_pid() not in (None, gone), 120.0)
            answered = crowd.right
            until(lambda least=answered + 8: crowd.right >= least, 120.0, seen=lambda: crowd.refused)
    finally:
        crowd.stop()
    assert crowd.wrong == []
    told = [one.partition(":")[0] for one in crowd.refused]
    assert set(told) <= {"503", "in the stream"}, crowd.refused
    print(f"{GATEWAY_KILLS} kills: {crowd.right} answered, {told.count('503')} refused, {len(told)} not answered")


def test_reload_switches_checkpoint_and_bank_without_a_refusal(desk: Desk, tmp_path: Path) -> None:
    other = Desk(str(tmp_path / "other"), model_named("newer-checkpoint"))
    for town in TOWNS:
        other.publish(town, f"Mayor of {town}", f"{town} elected mayor Person{town}New on Monday.")
    settings = settings_for(desk.uri)
    crowd = Crowd(start(settings, model_factory=slow_model))
    try:
        until(lambda: crowd.right >= 4, 60.0)
        pids = replica_pids(1)
        target = settings.model_copy(
            update={
                "model": settings.model.model_copy(update={"checkpoint": "newer-checkpoint"}),
                "bank": settings.bank.model_copy(update={"uri": other.uri}),
            }
        )
        loaded = reload_service(target, model_factory=slow_model)
        assert loaded.model_id == "newer-checkpoint"
        assert "New" in ask(crowd.url, "Who was elected mayor of Skagen?").choices[0].message.content
        answered = crowd.right
        until(lambda: crowd.right >= answered + 8, 60.0)
        assert replica_pids(1) == pids  # nothing was restarted
        broken = target.model_copy(update={"model": target.model.model_copy(update={"checkpoint": "missing"})})
        with pytest.raises(ServiceError, match="goes on as it was"):
            reload_service(broken, model_factory=slow_model)
        assert "New" in ask(crowd.url, "Who was elected mayor of Skagen?").choices[0].message.content
    finally:
        crowd.stop()
        other.close()
    assert crowd.wrong == []
    assert crowd.refused == []
    assert set(crowd.models) == {"lexical-1", "newer-checkpoint"}
    changes = sum(a != b for a, b in zip(crowd.models, crowd.models[1:], strict=False))
    assert changes <= 8  # four clients, each with one answer under way at the exchange


def test_document_withdrawn_through_the_api_is_gone_once_ingest_has_seen_its_tombstone(
    local_ray: None, kafka_settings: KafkaSettings, broker: str, tmp_path: Path
) -> None:
    stop()
    settings = settings_for(str(tmp_path / "bank"))
    kafka = kafka_settings.model_copy(update={"bootstrap_servers": broker})
    settings = settings.model_copy(update={"kafka": kafka})
    ingest = start_ingest(settings, broker, model_factory=load_lexical)
    try:
        url = start(settings, model_factory=load_lexical)
        question = "Which comet was photographed over Skagen?"
        assert ask(url, question).choices[0].message.content == UNKNOWN
        with DocumentProducer(kafka, broker) as producer:
            producer.send(
                Document(id="urn:comet/1", title="Comet", text="The comet Halvorsen was photographed over Skagen.")
            )
            producer.flush(10.0)
        until(lambda: "Halvorsen" in ask(url, question).choices[0].message.content, 30.0)
        answer = httpx.delete(f"{url}/v1/documents/urn:comet/1", timeout=30.0)
        assert (answer.status_code, answer.json()["known"]) == (202, True)
        story: dict[str, Any] = {}

        def deleted() -> bool:
            story.update(httpx.get(f"{url}/v1/documents/urn:comet/1").json())
            return bool(story["state"] == "deleted")

        until(deleted, 30.0)
        assert ask(url, question).choices[0].message.content == UNKNOWN
        assert client(url).models.list().data
    finally:
        ingest.stop(20.0)
        stop()


def test_delete_without_kafka_says_so(desk: Desk) -> None:
    settings = settings_for(desk.uri, kafka__bootstrap_servers="127.0.0.1:1", kafka__connect_timeout_s=1)
    url = start(settings, model_factory=slow_model)
    started = time.monotonic()
    answer = httpx.delete(f"{url}/v1/documents/Skagen", timeout=30.0)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert "127.0.0.1:1" in answer.json()["error"]["message"]
    assert time.monotonic() - started < 25
    assert "PersonSkagen" in ask(url, "Who was elected mayor of Skagen?").choices[0].message.content


def model_named(model_id: str) -> Any:
    from services.testing.lexical import LexicalModel

    return LexicalModel(model_id=model_id)
