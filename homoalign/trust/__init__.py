"""What an answer is worth: the evidence that a pair holds, the confidence that follows, the status."""
