"""Tests of slowfast_model.training."""
