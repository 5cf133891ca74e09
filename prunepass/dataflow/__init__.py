"""What is known of each channel without running the model: its range forward, its readers backward."""
