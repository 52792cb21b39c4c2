"""Objectives: each is a layout of slots and a weighted sum of loss terms over them.

An objective is a module here with an `OBJECTIVE` (see `base.Objective`), its entry in
`table.OBJECTIVES`, and a row in `janus_pt/config/objectives.py`. Nothing is imported here: the
checks of a configuration need `limits.py` without torch.
"""
