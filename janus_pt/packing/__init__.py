"""The packed row of slots: what the model and the objectives share."""
