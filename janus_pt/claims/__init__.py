"""The paper's claims put to the test: every objective trained alike, decoded in every way, one table."""
