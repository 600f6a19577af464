"""The method on one device: frames, core states, folding, attaching, training, merging.

The reader's path: ``fold`` → ``frames`` → ``attach`` → ``lean`` → ``train`` → ``merge``.
"""
