"""What a checkpoint is worth: one small file per question, used by `training.evaluate`."""
