"""SlowFast networks for video recognition: models, data, training and evaluation, on the operators of slowfast_ops."""
