"""The commands: ``refine`` (g4seg-refine) and ``build_engines`` (g4seg-build-engines)."""
