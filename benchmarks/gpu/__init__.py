"""The benchmark behind benchmarks/gpu_check.sh: `python -m benchmarks.gpu --help`."""
