"""A fake of the module tensorrt, for control flow: what our code does when TensorRT works, refuses or fails.

It computes nothing, and no result of it is TensorRT's. Every public name, parameter and enum member of it is held
against the real bindings (test_conformance.py); what begins with an underscore steers it and is not part of that.
"""

# ruff: noqa: ARG001, ARG002, ARG005 (TensorRT's parameters, whether the fake reads them or not)

from __future__ import annotations

import enum
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__version__ = "11.4.0.106"

_MAGIC = "fake plan"


@dataclass
class _Script:
    """How the fake behaves next. Each error is what TensorRT says; None: no error."""

    inputs: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    outputs: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = field(default_factory=dict)
    start_error: str | None = None
    parser_errors: Sequence[str] = ()
    build_errors: dict[str, str] = field(default_factory=dict)  # by network and batch size, such as "unet.b4"
    interrupt_build: bool = False
    load_error: str | None = None
    context_error: str | None = None
    address_error: str | None = None
    launch_error: str | None = None
    working_memory: int = 4096
    information: Callable[[str], str] = str  # the inspector's JSON for a network
    padding: int = 0
    configs: list[Any] = field(default_factory=list)
    read_caches: list[bytes] = field(default_factory=list)
    launches: list[tuple[str, int, int]] = field(default_factory=list)


_script = _Script()


DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT64"])
LayerType = enum.Enum("LayerType", ["CONVOLUTION", "SOFTMAX", "MATRIX_MULTIPLY", "ATTENTION_INPUT"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])
ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])
BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"])
DeviceType = enum.Enum("DeviceType", ["GPU", "DLA"])


class ILogger:
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = ILogger.Severity


class IProgressMonitor: ...


class ITensor:
    def __init__(self) -> None:
        self._name = ""
        self._shape: tuple[int, ...] = ()
        self._dtype = DataType.FLOAT

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    is_shape_tensor = property(lambda self: False)
    shape = property(lambda self: self._shape, lambda self, value: setattr(self, "_shape", tuple(value)))


class ILayer:
    _type, _node = LayerType.CONVOLUTION, ""

    name = property(lambda self: self._node)
    type = property(lambda self: self._type)
    metadata = property(lambda self: f"[ONNX Layer: {self._node}]")


class INetworkDefinition:
    def __init__(self) -> None:
        self._inputs: list[ITensor] = []
        self._layers: list[ILayer] = []
        self._network = ""

    num_inputs = property(lambda self: len(self._inputs))
    num_layers = property(lambda self: len(self._layers))

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: int) -> ILayer:
        return self._layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache:
    _data = b""

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data)


class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None: ...


def _setting(name: str) -> property:
    return property(lambda self: self._settings[name], lambda self, value: self._settings.update({name: value}))


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._limits: dict[MemoryPoolType, int] = {}
        self._cache: ITimingCache | None = None
        self._settings: dict[str, Any] = {}
        _script.configs.append(self)

    profiling_verbosity = _setting("profiling_verbosity")
    builder_optimization_level = _setting("builder_optimization_level")
    progress_monitor = _setting("progress_monitor")
    default_device_type = property(lambda self: DeviceType.GPU)
    DLA_core = property(lambda self: -1)
    num_optimization_profiles = property(lambda self: 1)

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._limits[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        _script.read_caches.append(bytes(serialized_timing_cache))
        cache = ITimingCache()
        cache._data = bytes(serialized_timing_cache)
        return cache

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


def _start(logger: ILogger) -> None:
    if _script.start_error is not None:
        logger.log(ILogger.Severity.ERROR, _script.start_error)
        raise TypeError("pybind11::init(): factory function returned nullptr")


class Builder:
    def __init__(self, logger: ILogger) -> None:
        _start(logger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Tactics", "Building", 1)
        monitor.step_complete("Tactics", 0)
        monitor.phase_finish("Tactics")
        if _script.interrupt_build:
            os.kill(os.getpid(), signal.SIGINT)
        if not monitor.step_complete("Building", 0):
            self._logger.log(ILogger.Severity.ERROR, "build cancelled by the progress monitor")
            return None
        error = _script.build_errors.get(f"{network._network}.b{network._inputs[0].shape[0]}")
        if error is not None:
            self._logger.log(ILogger.Severity.ERROR, "an earlier error\nin two lines")
            self._logger.log(ILogger.Severity.ERROR, error)
            return None
        assert config._cache is not None
        config._cache._data += f"[{network._network}]".encode()
        assert all(size > 0 for tensor in network._inputs for size in tensor.shape), "a dynamic shape"
        plan = {
            "magic": _MAGIC,
            "network": network._network,
            "inputs": {tensor.name: (tensor.dtype.name, tensor.shape) for tensor in network._inputs},
            "outputs": {
                name: (dtype, [network._inputs[0].shape[0] if size < 0 else size for size in shape])
                for name, (dtype, shape) in _script.outputs[network._network].items()
            },
            "padding": "x" * _script.padding,
        }
        return IHostMemory(json.dumps(plan).encode())


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    num_errors = property(lambda self: len(_script.parser_errors))

    def parse_from_file(self, model: str) -> bool:
        if _script.parser_errors:
            return False
        network = self._network
        network._network = Path(model).stem
        for name, (dtype, shape) in _script.inputs[network._network].items():
            tensor = ITensor()
            tensor._name, tensor._dtype, tensor._shape = name, DataType[dtype], shape
            network._inputs.append(tensor)
        for kind, node in ((LayerType.CONVOLUTION, "node_conv"), (LayerType.SOFTMAX, "node_softmax")):
            layer = ILayer()
            layer._type, layer._node = kind, node
            network._layers.append(layer)
        return True

    def get_error(self, index: int) -> str:
        return _script.parser_errors[index]


def init_libnvinfer_plugins(logger: ILogger, namespace: str) -> bool:
    return True


class EngineInspector:
    _network = ""

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        return _script.information(self._network)


class IExecutionContext:
    def __init__(self) -> None:
        self._logger = ILogger()
        self._network = ""
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if _script.address_error is not None:
            self._logger.log(ILogger.Severity.ERROR, _script.address_error)
            return False
        self._addresses[name] = memory
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if _script.launch_error is not None:
            self._logger.log(ILogger.Severity.ERROR, _script.launch_error)
            return False
        _script.launches.append((self._network, stream_handle, self._memory[0]))
        return True


class ICudaEngine:
    def __init__(self) -> None:
        self._logger = ILogger()
        self._plan: dict[str, Any] = {}

    num_io_tensors = property(lambda self: len(self._tensors()))
    device_memory_size_v2 = property(lambda self: _script.working_memory)

    def _tensors(self) -> dict[str, tuple[str, list[int]]]:
        return {**self._plan["inputs"], **self._plan["outputs"]}

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors())[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._tensors()[name][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._tensors()[name][1]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._plan["inputs"] else TensorIOMode.OUTPUT

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext | None:
        if _script.context_error is not None:
            self._logger.log(ILogger.Severity.ERROR, _script.context_error)
            return None
        context = IExecutionContext()
        context._logger, context._network = self._logger, self._plan["network"]
        return context

    def create_engine_inspector(self) -> EngineInspector:
        inspector = EngineInspector()
        inspector._network = self._plan["network"]
        return inspector


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        _start(logger)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if _script.load_error is not None:
            self._logger.log(ILogger.Severity.ERROR, _script.load_error)
            return None
        try:
            plan = json.loads(bytes(serialized_engine))
        except ValueError:
            self._logger.log(ILogger.Severity.ERROR, "Serialization assertion magicTagRead == kPLAN_MAGIC_TAG failed")
            return None
        engine = ICudaEngine()
        engine._logger, engine._plan = self._logger, plan
        return engine
