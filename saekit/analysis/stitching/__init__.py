"""Stitching: one dictionary turned into another, step by step."""
