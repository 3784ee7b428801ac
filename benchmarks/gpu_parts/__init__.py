"""The parts of benchmarks/gpu.py, one a file."""
