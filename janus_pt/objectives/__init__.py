"""Objectives: each is a layout of slots and a weighted sum of loss terms over them."""
