"""What the processor is said to be able to do."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from g4seg_engine import processor

INTEL = ["processor\t: 0", "vendor_id\t: X", "model\t\t: 1", "cpu MHz\t\t: 3000", "flags\t\t: fpu avx2 amx_bf16", ""]
ARM = ["processor\t: 0", "Features\t: fp asimd bf16", "CPU implementer\t: 0x41"]
OLD = ["flags\t\t: fpu avx2 avx512f"]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    functions = (processor.flags, processor.processor_hash)
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


@pytest.mark.parametrize(("lines", "expected"), [(INTEL, True), (ARM, True), (OLD, False), ([], False)])
def test_bfloat16(lines: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_cpuinfo", lambda: lines)
    assert processor.has_bfloat16() is expected
    assert processor.cpu_precisions() == (("fp32", "bf16") if expected else ("fp32",))


def test_the_hash_is_of_what_the_processor_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(lines: list[str]) -> str:
        processor.processor_hash.cache_clear()
        monkeypatch.setattr(processor, "_cpuinfo", lambda: lines)
        return processor.processor_hash()

    slower = [line.replace("3000", "800") for line in INTEL]
    assert hashed(INTEL) == hashed(slower) == hashed([*INTEL, *INTEL])
    assert len({hashed(lines) for lines in (INTEL, ARM, OLD, [])}) == 4


def test_usable_cpus() -> None:
    assert 1 <= processor.usable_cpus() <= (os.cpu_count() or 1)
