"""Who teaches: names and weights of `--teachers`, what a teacher says about images, and the draw of one per step.

How a teacher's network works is the business of `distilldepth.models`, what a student makes of it of the training.
"""
