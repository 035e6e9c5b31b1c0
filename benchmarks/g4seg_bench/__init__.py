"""Latency and quality measurements."""
