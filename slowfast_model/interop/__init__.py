"""Reading and writing other projects' checkpoints and configurations."""
