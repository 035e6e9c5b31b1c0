"""Ray started on this machine, or a cluster joined; how many workers there is room for."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from g4seg_engine.processor import usable_cpus
from g4seg_trt.errors import ClusterError, ConfigError, MissingExtraError

LOCAL, AUTO = "local", "auto"
"""Addresses: Ray is started on this machine; the cluster that this machine belongs to."""

MOST_THREADS = 4
"""Threads of a worker on a CPU if nothing is said: a larger engine than the embedded one keeps so many busy."""

_PATIENCE = 5.0
"""Seconds to wait for a cluster's answer; Ray itself would go on trying for minutes."""

_TOKEN = "it asks for its token: set RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: its name, and what Ray may use of it."""

    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Room:
    """The workers of a pool.

    Attributes:
        workers: how many.
        threads: CPU threads of each, which Ray sets aside for it.
        gpu: whether each has a GPU to itself.
    """

    workers: int
    threads: int
    gpu: bool

    def resources(self) -> dict[str, Any]:
        """What one worker asks Ray for. The libraries of its process take no more threads than it has."""
        threads = str(self.threads)
        variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        return {
            "num_cpus": self.threads,
            "num_gpus": 1 if self.gpu else 0,
            "runtime_env": {"env_vars": variables},
        }


def import_ray() -> Any:
    """The module ray, with ray.data; raises MissingExtraError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_package((error.name or "ray").split(".")[0], "ray") from error
    return ray


def connect(address: str) -> bool:
    """Start Ray or join a cluster; a process that has done so already stays where it is.

    Args:
        address: LOCAL, AUTO, or HOST:PORT of a cluster that this machine belongs to.

    Returns:
        Whether this began it, and `disconnect` is to end it.

    Raises:
        MissingExtraError: if Ray is not installed.
        ConfigError: if the address is none.
        ClusterError: if there is no cluster.
    """
    ray = import_ray()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        return False
    _check_address(address)
    options: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if address == LOCAL:
        options |= {"num_cpus": usable_cpus(), "include_dashboard": False}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises nothing more special, also when its processes do not come up in time
        ray.shutdown()
        why = _TOKEN if _asks_for_token(error) else str(error)
        raise ClusterError(_not_reached(address, why)) from error
    return True


def disconnect() -> None:
    """Leave the cluster; Ray that `connect` started ends."""
    import_ray().shutdown()


def nodes() -> list[Node]:
    """The machines of the cluster."""
    found = []
    for node in import_ray().nodes():
        if node["Alive"]:
            resources = node["Resources"]
            cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
            found.append(Node(node["NodeManagerHostname"], cpus, gpus))
    return found


def make_room(machines: Sequence[Node], workers: int | None, threads: int | None, gpu: bool) -> Room:
    """How many workers of how many threads.

    Args:
        machines: of the cluster.
        workers: as many as asked for; None for as many as there is room for.
        threads: of each; None for MOST_THREADS, or what the smallest machine has, and for 1 beside a GPU.
        gpu: whether each needs a GPU.

    Raises:
        ConfigError: for a number below 1.
        ClusterError: if there is no room for them.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, allowed: 1 or more")
    usable = [node for node in machines if node.cpus >= 1 and (node.gpus >= 1 or not gpu)]
    if threads is None:
        threads = 1 if gpu else min([MOST_THREADS, *(node.cpus for node in usable)])
    most = sum(min([node.cpus // threads, *([node.gpus] if gpu else [])]) for node in usable)
    if most < (workers or 1):
        each = f"{threads} CPU threads{' and a GPU' if gpu else ''}"
        there = "; ".join(f"{node.name} {node.cpus} CPUs, {node.gpus} GPUs" for node in machines)
        raise ClusterError(
            f"no room for {workers or 1} workers of {each} each: the cluster has {there}; fewer --workers or --threads"
        )
    return Room(workers or most, threads, gpu)


def _check_address(address: str) -> None:
    if address in (LOCAL, AUTO):
        return
    found = re.fullmatch(r"(?P<host>[^:/\s]+|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})", address, re.ASCII)
    if found is None:
        raise ConfigError(f"the address of a Ray cluster is {address!r}, allowed: {AUTO}, HOST:PORT")
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(_not_reached(address, str(error))) from error


def _asks_for_token(error: BaseException | None) -> bool:
    """Whether the cluster was there and turned this process away; Ray says so further down only."""
    while error is not None:
        if "authentication token" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _not_reached(address: str, why: str) -> str:
    why = why.splitlines()[0] if why else "it does not say why"
    if address == LOCAL:
        return f"Ray cannot be started on this machine: {why}"
    return (
        f"no Ray cluster can be joined at {address} ({why}); begin one with `ray start --head` and run this on one of "
        "its machines, or leave the address out"
    )
