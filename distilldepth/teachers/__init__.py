"""Who teaches: names and weights of `--teachers`, what a teacher says about images, and the draw of one per step."""
