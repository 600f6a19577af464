"""The link: gRPC on a Unix socket between a device's two processes.

    bridge (Flower's process)                        agent (the learner's process)
    caller.ask ──► Request ──► agent.sock, 0600 ──► service.serve ──► answer(Request)
               ◄── Payload, Metrics or Declined ◄──

``records`` is what both sides speak and needs neither gRPC nor protobuf; ``messages`` puts it into
bytes. Nothing here knows Flower or torch.
"""
