"""Meta-SAEs: what decoder directions are made of."""
