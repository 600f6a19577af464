"""From a sensor's samples to windows in the store.

    file | stream | socket ──► lines ──► parse ──► Intake ──► store
                                                     │
                      Stream (pure): units, signs → even grid → segments → windows

Numpy alone; bounded memory; a killed intake goes on where the store says it was.
"""

from clients.agent.intake.intake import Intake, IntakeReport
from clients.agent.intake.spec import IntakeSpec, spec_of
from clients.agent.intake.stream import Stream

__all__ = ["Intake", "IntakeReport", "IntakeSpec", "Stream", "spec_of"]
