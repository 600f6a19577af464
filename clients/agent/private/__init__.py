"""The private core: what a device learns for itself on top of the fleet's release, and never sends.

    record    its bytes                          split     windows that train it, and that judge it
    fitting   on another base, frame or layout   learning  one training of it, and its judgement
    judging   what windows kept back say         cores     what is due, one look at a time
    serving   core and own statistics in service
    worker    the thread that looks              removing  forget, off, drop: from any process
    summary   what people are told               settings  what the owner decides

It lives in the store; ``STATE/model/personal`` only says what is served of it. Messages of the
fleet are answered from the release alone, by code that does not know of it.
"""
