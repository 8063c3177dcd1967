"""Features that are not lines: clusters of latents whose joint reconstruction fills a plane irreducibly."""
