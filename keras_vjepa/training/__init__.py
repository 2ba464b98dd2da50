"""How it is trained: optimizer, schedules, and the state of a run."""
