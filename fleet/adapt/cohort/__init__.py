"""The cohort engine: many devices of one fleet trained as one batched computation.

All devices share the folded kernels and the frames; cores, biases and the head differ. The
reader's path: ``stacks`` → ``ops`` → ``network`` → ``optimisers`` → ``work`` → ``train``;
``evaluate`` judges one network on everybody's windows. The oracle is one device at a time,
``fleet.adapt.train``.
"""
