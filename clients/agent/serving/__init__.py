"""Serving: which merged model a device answers with, and how it gets from one to the next.

    STATE/model/base.safetensors                       the immutable base; its header has its digest
    STATE/model/releases/NNNNNN-STATE.safetensors      core states, small, a bounded number
    STATE/model/served/NNNNNN-STATE.safetensors        merged dense kernels of the last two
    STATE/model/current                                which of them is served (JSON, one rename)
    STATE/model/last-good                              what was served before it
    STATE/model/personal                               what is served of the device's own beside it

``STATE`` in a name is the beginning of the core state's digest, the one that plans carry. Every
file is written whole or not at all, and nothing is served that was not read back and verified.

The reader's path: ``records`` → ``folder`` → ``kept`` → ``whole`` → ``held`` → ``probe`` →
``serve`` → ``recover``, which a process that learns uses; ``model`` is all that a process needs
that only infers.
"""
