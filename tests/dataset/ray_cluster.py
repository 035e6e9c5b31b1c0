"""A cluster of Ray in a process of its own, joined by runs in theirs: Ray ends every process that loses its cluster."""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_trt.dataset.result import Result
from g4seg_trt.dataset.source import DatasetSource

PATIENCE = 300.0
"""Seconds that a run may take on a machine that has much else to do."""

WORKERS = 2

HOST = f"""
import sys
from g4seg_trt.cluster.connection import import_ray
from g4seg_trt.cluster.refiner import RayRefiner
with RayRefiner.from_engine("tiny", workers={WORKERS}, threads=1):
    print(import_ray().get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""

RUN = f"""
import pickle, sys
from contextlib import redirect_stdout
from g4seg_trt.cluster.refiner import RayRefiner
source, output, more = pickle.load(sys.stdin.buffer)
with redirect_stdout(sys.stderr):  # Ray tells there of workers that die
    with RayRefiner.from_engine("tiny", address=sys.argv[1], workers={WORKERS}, threads=1) as refiner:
        results = list(refiner.refine_dataset(source, output, **more))
sys.stdout.buffer.write(pickle.dumps(results))
"""


@dataclass(frozen=True)
class Run:
    """A run of RayRefiner.refine_dataset in a process of its own, which does not outlive the block."""

    process: subprocess.Popen[bytes]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def results(self) -> list[Result]:
        """What it yields; waits for its end."""
        out, error = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, error.decode()
        results: list[Result] = pickle.loads(out)
        return results


@dataclass(frozen=True)
class Cluster:
    """Room for WORKERS workers of one thread.

    Attributes:
        address: HOST:PORT.
        environment: of a process that joins it; it has the cluster's token.
    """

    address: str
    environment: dict[str, str]

    def start(self, source: DatasetSource, output: Path, **more: Any) -> Run:
        """Begin a run; more: arguments of refine_dataset."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, self.address], stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment
        )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((source, output, more)))
        process.stdin.flush()
        return Run(process)

    def refine(self, source: DatasetSource, output: Path, **more: Any) -> list[Result]:
        """A whole run."""
        with self.start(source, output, **more) as run:
            return run.results()


@contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """Ray as RayRefiner starts it on this machine, until the block ends.

    Its workers are as nice to other processes as these are to them: Ray makes them so nice that tests beside these
    would leave them nothing.
    """
    pipe = subprocess.PIPE
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    own = {**environment, "RAY_worker_niceness": "0"}
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=pipe, stdout=pipe, text=True, env=own, start_new_session=True
    )
    try:
        assert host.stdout is not None
        address = host.stdout.readline().strip()
        assert address, "Ray has not started"
        yield Cluster(address, environment)
        host.communicate(timeout=PATIENCE)
        assert host.returncode == 0
    finally:
        if host.poll() is None:
            os.killpg(host.pid, signal.SIGKILL)
            host.wait()
