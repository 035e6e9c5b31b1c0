"""Fetches just the needed files of a Hugging Face repository, or takes them from the offline cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from g4seg_export.errors import SourceError


@dataclass(frozen=True)
class Weights:
    """Where a model keeps one module's weights, whole or in shards; safetensors are preferred.

    Attributes:
        folder: inside the model, "" for its root.
        safetensors: stem of the .safetensors files.
        binary: stem of the .bin files.
    """

    folder: str
    safetensors: str
    binary: str

    def files(self, root: Path) -> list[Path]:
        """The weight files under `root`, sorted; empty if there are none."""
        for stem, suffix in ((self.safetensors, "safetensors"), (self.binary, "bin")):
            names = (f"{stem}.{suffix}", f"{stem}-?????-of-?????.{suffix}")
            found = [path for name in names for path in (root / self.folder).glob(name)]
            if found:
                return sorted(found)
        return []

    def patterns(self, stem: str, suffix: str) -> list[str]:
        """Glob patterns, relative to the model's root, of the files of one format and of their index."""
        prefix = f"{self.folder}/" if self.folder else ""
        names = (f"{stem}.{suffix}", f"{stem}-?????-of-?????.{suffix}", f"{stem}.{suffix}.index.json")
        return [prefix + name for name in names]


def fetch_snapshot(repository: str, revision: str | None, files: Sequence[str], weights: Sequence[Weights]) -> Path:
    """Download `files` and `weights` of `repository`, or find them in the cache.

    Args:
        repository: hub id, "owner/name".
        revision: branch, tag or commit; None for the default branch.
        files: paths or glob patterns of the small files.
        weights: the modules whose weights are needed.

    Returns:
        The snapshot folder; its name is the commit that `revision` stood for.

    Raises:
        SourceError: if the repository or revision can be reached neither online nor in the cache.
    """
    safetensors = [pattern for part in weights for pattern in part.patterns(part.safetensors, "safetensors")]
    snapshot = _download(repository, revision, [*files, *safetensors])
    binary = [pattern for part in weights if not part.files(snapshot) for pattern in part.patterns(part.binary, "bin")]
    if binary:
        # The same commit, or the files of one engine could come from different states of the repository.
        _download(repository, snapshot.name, binary)
    return snapshot


def _download(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise SourceError(f"{repository!r} is not a valid hub id: expected OWNER/NAME") from error
    except LocalEntryNotFoundError as error:
        # Offline with some file missing: what is there may do, and whoever loads it says what is not.
        incomplete = getattr(error, "snapshot_path", None)
        if incomplete is not None:
            return Path(incomplete)
        raise SourceError(
            f"{repository!r}{at} is not in the local cache and the hub cannot be reached: "
            "check the connection, or give a local folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise SourceError(
            f"{repository!r}{at} cannot be fetched from the hub ({type(error).__name__}): "
            "check the name, or give a local folder"
        ) from error
