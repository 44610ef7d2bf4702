"""The example for teams that have a ray.serve.llm application: it answers from the bank's memories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from tests.integration.conftest import find_free_port
from tests.vllm.parts import QUESTIONS
from tests.vllm.test_serve import ANSWERS, write_bank

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bank, port = str(tmp_path_factory.mktemp("llm") / "bank"), find_free_port()
    write_bank(bank)
    variables = {
        "CMT_BANK__URI": bank,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "OMP_NUM_THREADS": "1",
    }
    ray.init(address="local", num_cpus=6, include_dashboard=False, runtime_env={"env_vars": variables})
    try:
        os.environ["PYTHONPATH"] = variables["PYTHONPATH"]
        from examples.ray_serve_llm import application

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(
            application(
                engine_kwargs={
                    "enforce_eager": True,
                    "dtype": "float32",
                    "block_size": 32,
                    "kv_cache_memory_bytes": 2**28,
                },
                accelerator_config={"kind": "cpu"},
                placement_group_config={"bundles": [{"CPU": 1}]},
            )
        )
        yield f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_the_application_answers_from_the_banks_memories(url: str) -> None:
    for question, answer in zip(QUESTIONS, ANSWERS, strict=False):
        got = httpx.post(url, json={"question": question}, timeout=600.0).json()
        assert answer in got["answer"]
        assert got["sources"]


def test_what_the_bank_does_not_hold_is_not_asked(url: str) -> None:
    got = httpx.post(url, json={"question": "zebra quartz polka"}, timeout=600.0).json()
    assert got == {"answer": "I don't know.", "sources": []}
