"""Running a model over many images: reading ahead, batches of one size, smaller ones when memory runs out.

Every job that runs one goes through `Estimator`; what a job makes of the maps is its own business.
"""
