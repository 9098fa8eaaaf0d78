"""What a checkpoint is worth: `questions/` are the suite, the other files what questions share."""
