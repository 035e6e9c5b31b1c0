"""Values of command-line options that several benchmarks take."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number from 1 on; argparse reports what is none."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1 on")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on with commas between them; each is taken once."""
    return tuple(dict.fromkeys(count(part) for part in text.split(",")))
