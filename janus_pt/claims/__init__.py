"""The paper's claims put to the test: every objective trained in the same way, decoded in every way, one table."""
