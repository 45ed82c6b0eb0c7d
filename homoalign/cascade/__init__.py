"""From one start to the next, for the pairs that the last one left in doubt; the better of the answers."""
