"""Stitching: one dictionary turned into another in steps."""
