"""Runs a command and prints what it took, as JSON; `processes.run_measured` starts it in a bare interpreter.

On Linux a process inherits the peak memory of whoever starts it: what the parent holds at that moment counts as the
child's. So the measured command is started from here, where the standard library's few modules are all there is.
"""

from __future__ import annotations

import json
import os
import sys
from time import monotonic, perf_counter


def main() -> None:
    """Run sys.argv[1:] and print {"code", "started", "seconds", "cpu_seconds", "peak_bytes", "output"}."""
    command = sys.argv[1:]
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_CLOSE, reader)]
    started, start = monotonic(), perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        output = stream.read()
    _, status, usage = os.wait4(child, 0)
    seconds = perf_counter() - start
    result = {
        "code": os.waitstatus_to_exitcode(status),
        "started": started,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "output": output.decode("utf-8", "replace"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
