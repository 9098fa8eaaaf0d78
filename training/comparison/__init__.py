"""What several runs say together: used by `training.compare`."""
