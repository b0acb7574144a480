"""Evaluation by the published protocols: AVA frame-mAP, Kinetics multi-view accuracy, and the pictures of a run."""
