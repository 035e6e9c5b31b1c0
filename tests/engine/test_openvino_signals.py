"""Signals in a process that has used OpenVINO."""

from __future__ import annotations

import subprocess
import sys

import pytest

from g4seg_trt.refiner import EMBEDDED

pytest.importorskip("openvino", reason="needs the extra openvino")

PROGRAM = """
import os, signal, sys
from pathlib import Path
from threading import Thread
from g4seg_engine.manifest import load_engine
from g4seg_engine.runner import open_runner

def close_in_a_thread(runner):
    thread = Thread(target=runner.close)
    thread.start()
    thread.join()

seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
directory = Path(sys.argv[1])
manifest = load_engine(directory)
for close in (lambda runner: runner.close(), close_in_a_thread):
    runners = [open_runner(directory, "text_encoder", "openvino", manifest=manifest, cache=False) for _ in range(2)]
    while runners:
        close(runners.pop(0))
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(seen))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_they_are_handled_after_runners_are_closed() -> None:
    command = [sys.executable, "-c", PROGRAM, str(EMBEDDED["tiny"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
