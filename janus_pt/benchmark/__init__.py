"""Measurements of training: the step beside a plain one, the losses alone, the loader alone."""
