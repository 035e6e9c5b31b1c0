"""Engine directories of g4seg-trt: build them, check them, run them.

Import what you need from the modules: ``spec`` (tensors of the five networks), ``manifest`` (manifest.json
and its checks), ``build`` (atomic writing), ``runner`` (running a network), ``errors``. This file imports
none of them, so that ``--version`` does not wait for numpy.
"""

from __future__ import annotations

from g4seg_engine.version import VERSION as __version__

__all__ = ["__version__"]
