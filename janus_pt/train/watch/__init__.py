"""What is watched while a run trains: other ranks, requests to stop, numbers that go wrong."""
