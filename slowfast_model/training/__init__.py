"""Training: learning-rate schedules, the optimiser, the LightningModules and the callbacks of a run."""
