"""Errors that a user can cause and mend. Everything else that is raised is a bug and keeps its traceback."""

from __future__ import annotations


class G4SegError(Exception):
    """A user's error: the message is one line that says what is wrong and what to do about it."""


class MissingExtraError(G4SegError):
    """An optional dependency is not installed."""

    @classmethod
    def for_package(cls, package: str, extra: str) -> MissingExtraError:
        """The error for `package`, which the extra `extra` of g4seg-trt installs."""
        return cls(f"{package} is not installed: pip install 'g4seg-trt[{extra}]'")


class EngineError(G4SegError):
    """Something is wrong with an engine directory or with what it was asked to do."""


class EngineNotFoundError(EngineError):
    """There is no engine directory at the given path."""


class EngineIncompleteError(EngineError):
    """The directory is half-built: its manifest, or a file that the manifest lists, is not there."""


class EngineMismatchError(EngineError):
    """The directory differs from what its manifest or this version of g4seg-trt says it is."""


class RunnerInputError(EngineError):
    """An input of a network has the wrong name, dtype, shape or batch size."""


def first_line(error: BaseException) -> str:
    """The message of an error as one line, or the name of its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
