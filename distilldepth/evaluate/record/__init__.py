"""What lies in the folder of an evaluation: result, samples, tables, page, and the maps that were saved."""
