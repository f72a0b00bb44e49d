"""Running a model over many images: reading ahead, batches of one size, smaller ones when memory runs out."""
