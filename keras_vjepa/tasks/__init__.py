"""Hold the models that are trained: the pretrainer, the probe and the classifier."""
