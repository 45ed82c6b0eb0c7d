"""The way down the pyramids, from a start to the full size; on structure where intensities do not tell."""
