"""A run of pre-training: its steps, its log, its processes, its folder."""
