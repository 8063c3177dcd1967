"""A family for people without a notebook: a static site, and the workspace in a browser."""
