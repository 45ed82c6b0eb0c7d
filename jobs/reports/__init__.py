"""What a person looks at once a run has results: accuracy, calibration, one HTML page."""
