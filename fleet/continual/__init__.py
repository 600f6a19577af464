"""Continual learning: streams, replay, drift, few labels, forgetting, personal cores."""
