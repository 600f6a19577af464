"""The learner of one device: training and judging core states on its own windows."""
