"""What of a subject others get to see."""
