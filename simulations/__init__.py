"""A fleet on one machine: the main job, its in-process grid, reports and benchmarks."""
