"""The paper's claims put to the test.

Every objective is trained on the same data at equal updates and decoded in every way: one table.
"""
