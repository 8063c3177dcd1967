"""The canonicity report of a family."""
