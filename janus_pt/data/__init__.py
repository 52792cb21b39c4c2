"""Reading corpora: the manifest, random access to samples, the global order, batches, and the loaders.

The order of the data is a pure function of (seed, epoch, position); ranks and worker processes only share out
what it says.
"""
