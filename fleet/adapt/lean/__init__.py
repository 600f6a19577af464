"""The lean trainer: core adaptation at nearly the memory of inference.

The reader's path: ``graph`` and ``translate`` → ``tape`` → ``op``, then the operations themselves
(``ops``, ``pooling``, ``layers``, ``convolution``, ``recorded``) → ``module``; ``memory`` and
``plan`` are for budgets.
"""
