"""The paper's series on the embedded model; users of other SAEs do not need it."""
