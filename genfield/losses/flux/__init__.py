"""Flux Matching: the estimator, the losses over noise levels and along flows, the mixing proxy."""
