"""Uniqueness: whether another training run finds the same latents, directions, effects and codes."""
