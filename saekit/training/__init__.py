"""Training dictionaries: the trainer, its variants, and runs side by side."""
