"""Training with TRL's trainer, which `lib.training.run` makes from a configuration."""
