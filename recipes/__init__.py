"""Run the paper's experiments: configs with its numbers, and a command for each."""
