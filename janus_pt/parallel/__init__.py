"""What is done to the model from outside: process groups, sharded layers, the engine."""

import warnings

warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
