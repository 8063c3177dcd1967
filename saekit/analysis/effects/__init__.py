"""Effects of latents on what the model says, and the circuits that they make up."""
