"""The paper's series on the embedded model: what a user of other SAEs does not need."""
