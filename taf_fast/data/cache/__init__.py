"""A data set decoded once into a folder, which is a data set itself."""
