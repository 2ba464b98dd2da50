"""The encoder and the predictor."""
