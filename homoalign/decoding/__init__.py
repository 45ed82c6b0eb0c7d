"""Bytes of image files into pixels, with the limits and the errors of what nobody has looked at before."""
