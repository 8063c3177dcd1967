"""Published and saved SAEs: names, formats, downloads, checks."""
