"""Drawing for other programs over HTTP: requests of many users in shared batches, on replicas of Ray Serve."""
