"""The fleet's service: one long run that carries out what the registry says."""
