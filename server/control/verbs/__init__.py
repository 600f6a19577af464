"""What each verb does: functions of a fleet, an actor and a request; no transport, no terminal."""
