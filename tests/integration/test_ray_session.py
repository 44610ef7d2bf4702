"""A command's Ray session writes nothing of its own, whatever dies in it, and ends with the signals as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, time
import ray
from services.runtime import ray_session
from services.settings import RaySettings

before = signal.getsignal(signal.SIGTERM)
with ray_session(RaySettings()):
    @ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    class Slow:
        def work(self):
            time.sleep(600)
    @ray.remote(num_cpus=0)
    class Dies:
        def work(self):
            import os
            os._exit(1)
    slow, dies = Slow.remote(), Dies.remote()
    waiting, lost = slow.work.remote(), dies.work.remote()
    try:
        ray.get(lost, timeout=60)
    except ray.exceptions.ActorDiedError:
        print("told", flush=True)
    time.sleep(1)
    ray.kill(slow, no_restart=False)  # its task is tried again, without end
    time.sleep(1)
    ray.kill(slow)
    time.sleep(2)
    assert signal.getsignal(signal.SIGTERM) is before
"""


def test_what_ray_says_about_tasks_of_dead_actors_is_not_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")
