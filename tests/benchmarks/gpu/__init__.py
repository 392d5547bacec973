"""The parts of bench_gpu: each imports what it needs, so that a part whose packages are missing can be left out."""
