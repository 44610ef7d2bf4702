"""The image, built as documented, does what it is for: as any user, read-only, without capabilities, without a network.

make image-test                       # builds it first
CMT_IMAGE=cmt:0.1.0 make image-test   # one that is there
"""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from tests.container.engine import IMAGE, build_image, docker, inspect, missing_engine
from tests.waiting import until

pytestmark = [
    pytest.mark.skipif(bool(missing_engine()), reason=missing_engine() or "-"),
    pytest.mark.timeout(3600),
]

CONFINED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--shm-size=512m"]
MOST_ADDED_BYTES = (
    1_670_000_000  # beside python:slim's 0.13 GB, so 1.8 GB in all without the models that BAKE_MODELS adds
)
# what PyPI's torch has more than the CPU build, which is the one that is meant to be in the image
CUDA_PARTS = (
    "nvidia triton cuda torch/lib/libtorch_cuda.so torch/lib/libtorch_cuda_linalg.so torch/lib/libtorch_nvshmem.so"
)


@pytest.fixture(scope="module")
def image() -> str:
    return IMAGE or build_image("cmt:image-test")


def run(image: str, *words: str, options: tuple[str, ...] = (), timeout_s: float = 900.0) -> str:
    """Output of a command in a confined container without a network; it must end with 0."""
    done = docker(
        "run", "--rm", "--network=none", *CONFINED, *options, image, *words, timeout_s=timeout_s, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_small(image: str) -> None:
    layers = [int(size) for size in docker("history", "--human=false", "--format={{.Size}}", image).stdout.split()]
    added, total = sum(layers[:-1]), sum(layers)  # the last one is the Python image's, or its lowest part
    site = run(image, "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    cuda = _bytes(image, f"cd {site}; du -sb -c {CUDA_PARTS}")
    models = _bytes(image, f"du -sb -c {site}/../../../share/cmt/models")
    print(f"\nimage: {total / 1e9:.2f} GB; models {models / 1e9:.2f}, CUDA's parts of torch {cuda / 1e9:.2f}")
    assert added - cuda - models <= MOST_ADDED_BYTES


def _bytes(image: str, command: str) -> int:
    """The total that a `du -c` prints; files that are not there count nothing."""
    printed = run(image, "sh", "-c", f"({command}) 2>/dev/null | tail -n 1")
    return int(printed.split()[0])


def test_it_needs_no_user_of_its_own_and_is_not_root(image: str) -> None:
    assert inspect(image)["Config"]["User"] not in {"", "0", "root"}
    assert run(image, "cmt", "--version", options=("--user=54321:54321",)).startswith("cmt ")


def test_baked_models_are_found_without_a_setting(image: str) -> None:
    script = "from services.models import fetch_models as f; from rich.console import Console; "
    script += "from services.settings import load_settings as s; f(s().model, Console())"
    assert run(image, "python", "-c", script, options=("--user=54321:54321",)) == ""  # nothing to fetch, no line


def test_the_demo_passes_as_any_user_without_a_network(image: str) -> None:
    table = run(image, "cmt", "demo", "--once", options=("--user=54321:54321",))
    assert "after the news:" in table


def test_a_folder_that_can_not_be_written_is_one_line(image: str) -> None:
    options = [*CONFINED, "--network=none", "--user=54321:54321"]
    done = docker("run", "--rm", *options, image, "cmt", "ingest", "--until-caught-up", timeout_s=300, check=False)
    assert done.returncode not in {0, 1}, done.stderr
    assert "/var/lib/cmt" in done.stderr
    assert "Traceback" not in done.stderr


class _Pod:
    """Containers that share a network and a volume, as the containers of a pod do."""

    def __init__(self, image: str) -> None:
        self.image, self.name = image, f"cmt-test-{uuid.uuid4().hex[:8]}"
        self._started: list[str] = []
        docker("volume", "create", self.name)

    def start(self, part: str, *words: str) -> None:
        network = f"--network=container:{self._started[0]}" if self._started else "--network=none"
        name = f"{self.name}-{part}"
        options = [*CONFINED, network, f"--volume={self.name}:/var/lib/cmt", "--user=54321:54321", "--init"]
        docker("run", "--detach", f"--name={name}", *options, self.image, *words)
        self._started.append(name)

    def ask(self, part: str, *words: str) -> subprocess.CompletedProcess[str]:
        return docker("exec", f"{self.name}-{part}", *words, timeout_s=180, check=False)

    def logs(self, part: str) -> str:
        done = docker("logs", f"{self.name}-{part}")
        return done.stdout + done.stderr

    def stop(self, part: str, within_s: int = 40) -> int:
        docker("stop", f"--time={within_s}", f"{self.name}-{part}", timeout_s=within_s + 30)
        state = docker("inspect", "--format={{.State.ExitCode}}", f"{self.name}-{part}")
        return int(state.stdout)

    def close(self) -> None:
        for name in reversed(self._started):
            docker("rm", "--force", name, check=False)
        docker("volume", "rm", "--force", self.name, check=False)


@pytest.fixture
def pod(image: str) -> Iterator[_Pod]:
    made = _Pod(image)
    yield made
    made.close()


def test_ingest_and_serve_work_in_containers_of_their_own_and_stop_in_order(pod: _Pod) -> None:
    pod.start("ingest", "cmt", "ingest")
    until(
        lambda: pod.ask("ingest", "cmt", "ingest", "status").returncode == 0,
        600,
        every_s=2,
        seen=lambda: pod.logs("ingest"),
    )
    sent = pod.ask("ingest", "cmt", "feed", "play", "--sample-news")
    assert sent.returncode == 0, sent.stderr
    pod.start("serve", "cmt", "serve")
    question = ["cmt", "ask", "How many hybrid ferries did Tarrin Lines order?", "--json"]

    def answered() -> bool:
        reply = pod.ask("serve", *question)
        return reply.returncode == 0 and bool(json.loads(reply.stdout)["sources"])

    until(answered, 600, every_s=2, seen=lambda: pod.logs("serve") + pod.logs("ingest"))
    for part in ("serve", "ingest"):
        assert pod.stop(part) in {0, 130, 143}, pod.logs(part)
        assert "Traceback" not in pod.logs(part)
