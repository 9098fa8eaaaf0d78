"""The suite: one question of `training.evaluate`, one file, one function `evaluate(subject) -> Findings`."""
