"""Errors of the export that a user can cause and mend."""

from __future__ import annotations

from collections.abc import Sequence

from g4seg_engine.errors import G4SegError


class SourceError(G4SegError):
    """The model cannot be found, loaded or used: the message names it and says what is expected."""


class ExportError(G4SegError):
    """A network cannot be exported as asked."""


class ParityError(ExportError):
    """An exported graph differs from its torch module.

    Attributes:
        mismatches: every difference found, one sentence each; the message joins them.
    """

    def __init__(self, network: str, mismatches: Sequence[str]) -> None:
        self.network = network
        self.mismatches = tuple(mismatches)
        super().__init__(f"{network}: the exported graph differs from the model: {'; '.join(mismatches)}")
