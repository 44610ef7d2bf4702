"""A smaller run with the method's own compressor (a tiny random LLM in the real code) while its process is killed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import ray

from services.models import load_cmt
from services.stream.broker import EmbeddedBroker
from tests.faults.stream_model import StreamModel
from tests.faults.world import World, fault_settings, kill_9
from tests.integration.conftest import find_free_port
from tests.unit.conftest import (  # noqa: F401 - fixtures
    load_backbone,
    tiny_backbone,
    tiny_checkpoint,
    tiny_folders,
    tiny_llm_folder,
    tiny_memory,
    tiny_retriever_folder,
)

if TYPE_CHECKING:
    from tests.unit.conftest import TinyFolders


@pytest.fixture
def world(tiny_folders: TinyFolders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:  # noqa: F811
    folder = tmp_path_factory.mktemp("real")
    settings = fault_settings(
        folder,
        folder.name,
        ingest__compressors=1,
        ingest__consumers=1,
        ingest__batch_windows=16,
        model__llm=str(tiny_folders.llm),
        model__checkpoint=str(tiny_folders.checkpoint),
        model__retriever=str(tiny_folders.retriever),
        model__cache_dir=str(tiny_folders.cache),
        model__device="cpu",
    )
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    with EmbeddedBroker(find_free_port()) as broker:
        made = World(broker, settings, StreamModel(5, wordless_is_poison=False), 60.0, load_cmt(settings), load_cmt)
        made.start()
        yield made
        made.handle.kill()
    ray.shutdown()


@pytest.mark.timeout(400)
def test_the_real_compressor_dies_in_the_middle(world: World) -> None:
    world.during(150, lambda: kill_9(world.handle.compressors[0]) and None)
    world.check()
