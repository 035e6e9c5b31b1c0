"""Reads a file as a run does, and holds what comes of it against what may come."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from g4seg_trt.errors import G4SegError
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.detect import detect
from g4seg_trt.masks.formats import FORMATS, Format
from tests.masks.case import HEIGHT, WIDTH, Case


def tried(case: Case, path: Path, target: Path) -> bool:
    """Whether a file is read; what is read is written. Anything but a G4SegError of one line is a bug."""
    one = FORMATS[case.format]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert isinstance(one.recognise(path), (str, type(None)))
        passed = False
        for naming in (case.naming, case.called(names=("dog",), size=(HEIGHT, WIDTH))):
            try:
                detect(path, None, naming)
                if isinstance(one, Format):
                    masks = one.read(path, naming)
                    check(masks)
                    one.write(target, masks)
                else:
                    collection = one.open(path, naming)
                    results = []
                    for stem in collection.stems():
                        collection.digest(stem)
                        results.append((stem, collection.read(stem)))
                        check(results[-1][1])
                    one.write(target, results, collection)
                passed = True
            except G4SegError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 3000  # a name may be long
                assert str(path.name) in str(error)
    return passed


def check(masks: CoarseMasks) -> None:
    assert masks.probabilities.dtype == np.float32
    assert masks.probabilities.shape == (len(masks.names), *masks.size)
    assert ((masks.probabilities >= 0) & (masks.probabilities <= 1)).all()


def has_pycocotools() -> bool:
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError:
        return False
    return True
