"""``make gpu``: correctness of every kernel on a GPU, then timings against rooflines and peers, within eight minutes.

``python -m benchmarks.gpu`` needs a CUDA device and what ``lanes.REQUIRED`` lists, installs nothing and asks nothing.
``ceilings``, ``structures``, ``toeplitz`` and ``layers`` hold the rows; a row that fails is recorded and the next one
runs. The JSON is written after every row. ``--dry-run`` runs the code of every row on the CPU at tiny sizes.
"""
