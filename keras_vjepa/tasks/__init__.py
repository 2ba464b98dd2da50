"""What is trained: the pretrainer, the probe and the classifier."""
