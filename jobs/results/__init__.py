"""Result rows in parts: written, read back, counted."""
