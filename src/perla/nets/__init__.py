"""Networks: actors, critics and what they share."""
