"""Prepare data sets: check files, copy them into a form that is read fast, mix them, time them."""
