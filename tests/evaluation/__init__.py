"""Tests of slowfast_model.evaluation."""
