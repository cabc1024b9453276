"""The parts of `benchmarks/run.py`: what is measured, by whom, on what data, and how it is shown."""
