"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the sentence says what is wrong with which file."""
