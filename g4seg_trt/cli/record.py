"""OUT/run.json of a folder run: what its results were made with, so that no run goes on with results of another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.errors import OutputError

REMEDY = "choose another --output, or delete the folder"


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json.

    Attributes:
        settings: what is the same for all images: JSON values by name.
        classes: stem -> class names, in order.
    """

    settings: Mapping[str, Any]
    classes: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """The record, or None if there is no such file; raises OutputError if it is no record."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            classes = {stem: tuple(names) for stem, names in content["classes"].items()}
            return cls(dict(content["settings"]), classes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read {path}: {reason(error)}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(f"{path} is not the record of a folder run; {REMEDY}") from error

    def write(self, path: Path) -> None:
        """Write the record, atomically; raises OutputError."""
        content = {"settings": self.settings, "classes": self.classes}
        with atomic_file(path) as file:
            # ASCII: a stem need not be valid Unicode.
            file.write((json.dumps(content, indent=1) + "\n").encode("ascii"))

    def check_same(self, now: Mapping[str, Any], folder: Path) -> None:
        """Check that the results in `folder` were made with the settings of this run.

        Raises:
            OutputError: naming each setting that differs, as it was and as it is now.
        """
        # As JSON has them: a tuple becomes a list.
        wanted: dict[str, Any] = json.loads(json.dumps(now))
        differing = [
            f"{name} {_shown(self.settings.get(name))}, now {_shown(wanted.get(name))}"
            for name in {**wanted, **self.settings}
            if self.settings.get(name) != wanted.get(name)
        ]
        if differing:
            raise OutputError(f"{folder} holds results made with other settings ({'; '.join(differing)}): {REMEDY}")


def _shown(value: object) -> str:
    """A JSON value for people; hashes shortened."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
