"""Experiments of the paper: configs with its numbers, and a command for each."""
