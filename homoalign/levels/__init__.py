"""Pixels into gray pyramids: how levels are made, described, read between pixels and compared."""
