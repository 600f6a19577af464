"""What the agent answers to the fleet's messages: train, evaluate, serve a release, say how it is.

decide (policy) → catch up and serve → train, checkpointed → outbox → answer
"""

from clients.agent.answering.agent import Agent
from clients.agent.answering.world import World

__all__ = ["Agent", "World"]
