"""The methods next to each other on real text: MiniLM adapted to SST-2, ``python -m benchmarks.papers --data DIR``."""
