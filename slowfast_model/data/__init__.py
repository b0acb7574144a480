"""Video reading, clip sampling, the AVA and Kinetics data sets, and the built-in sample set."""
